//! `/v1/sandboxes/NAME/logs`: the console's bytes from an offset on; with `follow`, as they come.
//!
//! Plain, they are what the program printed, and a gap is a line that says so. With `format=json`,
//! each line is a stretch of one stream with its offset and time.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;

use crate::api::caller::{Caller, Grant, REVOKED};
use crate::api::rate::Place;
use crate::api::request::{Path as UrlPath, Query};
use crate::api::sandboxes::find;
use crate::api::text::Decoder;
use crate::api::{ApiError, Kind, Shared, wire};
use crate::reconcile::link::Head;
use sodium_api::{ErrorCode, GapRange, LogLine, LogsQuery};
use sodium_shim::spool::{Chunk, Reader};

/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;

struct Follower {
    reader: Reader,
    head: watch::Receiver<Head>,
    follow: bool,
    json: bool,
    decoder: Decoder,
    buffer: Vec<u8>,
    ended: bool,
    grant: Grant,
    _place: Option<Place>,
}

pub(super) async fn logs(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    UrlPath(id): UrlPath<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let sandbox = find(&api, &id)?;
    let LogsQuery { offset, tail, follow, format } = query;
    let head = api.handle.watch_console(sandbox.uid);
    let spool = api.handle.spool(sandbox.uid).ok_or(ApiError::NotFound)?;
    let start = start(&spool, offset, tail);
    let (json, follow) = (format.is_some_and(|format| format == "json"), follow.0);
    let place = if follow { Some(api.place(Kind::Follower, &caller)?) } else { None };
    let follower = Follower {
        reader: Reader::new(&spool, start),
        head,
        follow,
        json,
        decoder: Decoder::default(),
        buffer: vec![0; CHUNK_BYTES],
        ended: false,
        grant: caller.grant,
        _place: place,
    };
    let chunks = stream::unfold(follower, |mut follower| async move {
        let bytes = follower.next().await?;
        Some((Ok::<_, Infallible>(bytes), follower))
    });
    let kind = if json { "application/x-ndjson" } else { "application/octet-stream" };
    let headers = [(CONTENT_TYPE.as_str(), kind), ("sodium-offset", &start.to_string())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok((axum::response::AppendHeaders(headers), Body::from_stream(chunks)).into_response())
}

/// Where to begin: at an offset, so many bytes before the end, or at the oldest byte there is.
pub(super) fn start(spool: &Path, offset: Option<u64>, tail: Option<u64>) -> u64 {
    let bounds = Reader::bounds(spool).unwrap_or(0..0);
    match (offset, tail) {
        // Beyond the end there is nothing to wait for that an offset could mean.
        (Some(offset), _) => offset.min(bounds.end),
        (None, Some(tail)) => bounds.end.saturating_sub(tail).max(bounds.start),
        (None, None) => bounds.start,
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            if self.grant.is_revoked() {
                self.ended = true;
                return Some(self.last_word());
            }
            // Marked seen before reading, so that what is written meanwhile wakes the wait.
            self.head.borrow_and_update();
            match self.read() {
                Ok(Some(bytes)) => return Some(bytes),
                // Both arms only wait; the second is seen to above.
                Ok(None) if self.follow => tokio::select! {
                    changed = self.head.changed() => changed.ok()?,
                    () = self.grant.revoked() => (),
                },
                Ok(None) => return None,
                // The spool was removed with its sandbox.
                Err(_) => return None,
            }
        }
        None
    }

    fn last_word(&self) -> Bytes {
        match self.json {
            true => {
                let code = ErrorCode::Unauthorized;
                wire::line(&LogLine::End { error: REVOKED.to_owned(), code })
            }
            false => format!("[sodiumd] {REVOKED}\n").into(),
        }
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        Ok(match self.reader.read(&mut self.buffer)? {
            Chunk::End => None,
            Chunk::Gap { from, to } if self.json => {
                Some(wire::line(&LogLine::Gap { gap: GapRange { from, to } }))
            }
            Chunk::Gap { from, to } => {
                Some(format!("[sodiumd] {} bytes lost to rotation\n", to - from).into())
            }
            Chunk::Bytes { offset, count } if self.json => Some(self.lines(offset, count)?.into()),
            Chunk::Bytes { count, .. } => Some(Bytes::copy_from_slice(&self.buffer[..count])),
        })
    }

    fn lines(&mut self, offset: u64, count: usize) -> io::Result<String> {
        let mut out = String::new();
        for span in self.reader.spans(offset..offset + count as u64)? {
            let at = |offset_in_log: u64| usize::try_from(offset_in_log - offset).unwrap_or(0);
            let bytes = &self.buffer[at(span.range.start)..at(span.range.end)];
            let mut text = String::new();
            self.decoder.decode(span.stream, bytes, &mut text);
            let line = LogLine::Text {
                offset: span.range.start,
                time: sodium_model::Time(span.time_ms),
                stream: wire::stream(span.stream),
                text,
            };
            out.push_str(&wire::json(&line));
            out.push('\n');
        }
        Ok(out)
    }
}
