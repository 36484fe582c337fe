//! `/v1/sandboxes?watch=1`: every change from a version on, as lines of JSON.
//!
//! A watcher pulls from the ring of changes at its own pace; one that is too slow for the ring is
//! told so with a 410 and lists again. It never holds up a commit.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::caller::{Caller, Grant, REVOKED};
use crate::api::rate::Place;
use crate::api::{ApiError, Kind, Shared, wire};
use crate::store::{Change, ChangeKind, Snapshot, snapshot};
use sodium_api::{ErrorCode, WatchEvent};

/// Says which version a quiet watcher has reached.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);

struct Watcher {
    api: Shared,
    commits: watch::Receiver<Arc<Snapshot>>,
    at: u64,
    waiting: VecDeque<Change>,
    ended: bool,
    grant: Grant,
    _place: Place,
}

/// Answers with a stream that lasts until the client leaves. Without a version, what is there now
/// comes first, as ADDED.
pub(super) fn watch(
    api: &Shared,
    caller: &Caller,
    version: Option<&str>,
) -> Result<Response, ApiError> {
    let place = api.place(Kind::Watch, caller)?;
    let commits = api.store.watch();
    let now = api.store.snapshot();
    let (at, waiting) = match version {
        None => {
            let all = now.sandboxes.values();
            let added = all.map(|sandbox| {
                let (rv, sandbox) = (sandbox.rv, Arc::clone(sandbox));
                Change { rv, kind: ChangeKind::Added, sandbox }
            });
            (now.rv, added.collect())
        }
        Some(text) => {
            let at = snapshot::number(&now.epoch, text).ok_or(ApiError::Gone)?;
            (at, api.store.ring().since(at).ok_or(ApiError::Gone)?.into())
        }
    };
    let (api, grant) = (Arc::clone(api), caller.grant.clone());
    let watcher = Watcher { api, commits, at, waiting, ended: false, grant, _place: place };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((Ok::<_, Infallible>(line), watcher))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            if self.grant.is_revoked() {
                self.ended = true;
                let (code, error) = (ErrorCode::Unauthorized, Some(REVOKED.to_owned()));
                return Some(wire::line(&WatchEvent::Error { code, status: 401, error }));
            }
            if let Some(change) = self.waiting.pop_front() {
                self.at = self.at.max(change.rv);
                return Some(self.line(&change));
            }
            // Marked seen before looking, so that a commit in between wakes the wait.
            self.commits.borrow_and_update();
            match self.api.store.ring().since(self.at) {
                Some(changes) => self.waiting = changes.into(),
                None => {
                    self.ended = true;
                    let (code, error) = (ErrorCode::Gone, None);
                    return Some(wire::line(&WatchEvent::Error { code, status: 410, error }));
                }
            }
            if !self.waiting.is_empty() {
                continue;
            }
            // Both arms only wait; the second is seen to above.
            let waited = tokio::select! {
                changed = timeout(BOOKMARK_EVERY, self.commits.changed()) => changed,
                () = self.grant.revoked() => continue,
            };
            match waited {
                Ok(Ok(())) => (),
                Ok(Err(_)) => self.ended = true,
                Err(_) => return Some(self.bookmark()),
            }
        }
    }

    fn line(&self, change: &Change) -> Bytes {
        let epoch = &self.api.store.snapshot().epoch;
        let resource_version = snapshot::version(epoch, change.rv);
        let object = Box::new(wire::full(epoch, &change.sandbox));
        wire::line(&match change.kind {
            ChangeKind::Added => WatchEvent::Added { resource_version, object },
            ChangeKind::Modified => WatchEvent::Modified { resource_version, object },
            ChangeKind::Deleted => WatchEvent::Deleted { resource_version, object },
        })
    }

    fn bookmark(&self) -> Bytes {
        let epoch = &self.api.store.snapshot().epoch;
        let resource_version = snapshot::version(epoch, self.at);
        wire::line(&WatchEvent::Bookmark { resource_version })
    }
}
