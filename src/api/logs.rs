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
use serde_json::json;
use tokio::sync::watch;

use crate::api::caller::{Caller, Grant, REVOKED};
use crate::api::rate::Place;
use crate::api::request::Path as UrlPath;
use crate::api::sandboxes::{Pairs, find, flag};
use crate::api::text::Decoder;
use crate::api::{ApiError, Kind, Shared};
use crate::reconcile::link::Head;
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
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let sandbox = find(&api, &id)?;
    let number = |name: &str| match pairs.get(name).map(|text| text.parse::<u64>()) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(ApiError::BadRequest(format!("{name} is not a number of bytes"))),
    };
    let (offset, tail) = (number("offset")?, number("tail")?);
    let head = api.handle.watch_console(sandbox.uid);
    let spool = api.handle.spool(sandbox.uid).ok_or(ApiError::NotFound)?;
    let start = start(&spool, offset, tail);
    let json = pairs.get("format").is_some_and(|format| format == "json");
    let follow = flag(&pairs, "follow");
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
            true => format!("{}\n", json!({"error": REVOKED, "code": "unauthorized"})).into(),
            false => format!("[sodiumd] {REVOKED}\n").into(),
        }
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        Ok(match self.reader.read(&mut self.buffer)? {
            Chunk::End => None,
            Chunk::Gap { from, to } if self.json => {
                Some(format!("{}\n", json!({"gap": {"from": from, "to": to}})).into())
            }
            Chunk::Gap { from, to } => {
                Some(format!("[sodiumd] {} bytes are gone\n", to - from).into())
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
            let line = json!({
                "offset": span.range.start,
                "time": sodium_model::Time(span.time_ms),
                "stream": span.stream,
                "text": text,
            });
            out.push_str(&line.to_string());
            out.push('\n');
        }
        Ok(out)
    }
}
