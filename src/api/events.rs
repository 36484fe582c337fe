//! `/v1/events`: what happened, oldest first; with `follow`, as it happens.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;

use crate::api::caller::{Caller, Grant, REVOKED};
use crate::api::rate::Place;
use crate::api::request::Query;
use crate::api::{ApiError, Kind, Shared, list, wire};
use crate::store::Snapshot;
use sodium_api::{ErrorCode, EventLine, EventsQuery};
use sodium_model::Event;

pub(super) async fn list(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, ApiError> {
    let EventsQuery { sandbox: about, since, follow } = query;
    if !follow.0 {
        let snapshot = api.store.snapshot();
        let wanted = |event: &&Arc<Event>| event.seq > since && concerns(event, about.as_deref());
        let events: Vec<Arc<Event>> = snapshot.events.iter().filter(wanted).cloned().collect();
        return Ok(list::answer("items", events.into_iter(), ""));
    }
    let place = api.place(Kind::Follower, &caller)?;
    let (commits, grant) = (api.store.watch(), caller.grant);
    let follower = Follower { commits, since, about, ended: false, grant, _place: place };
    let lines = stream::unfold(follower, |mut follower| async move {
        let lines = follower.next().await?;
        Some((Ok::<_, Infallible>(lines), follower))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

struct Follower {
    commits: watch::Receiver<Arc<Snapshot>>,
    since: u64,
    about: Option<String>,
    ended: bool,
    grant: Grant,
    _place: Place,
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            if self.grant.is_revoked() {
                self.ended = true;
                let code = ErrorCode::Unauthorized;
                return Some(wire::line(&EventLine::End { error: REVOKED.to_owned(), code }));
            }
            let snapshot = Arc::clone(&self.commits.borrow_and_update());
            let (text, newest) = news(&snapshot, self.since, self.about.as_deref());
            self.since = newest;
            if !text.is_empty() {
                return Some(text.into());
            }
            // Both arms only wait; the second is seen to above.
            tokio::select! {
                changed = self.commits.changed() => changed.ok()?,
                () = self.grant.revoked() => (),
            }
        }
        None
    }
}

/// What a follower who has seen everything up to `since` is told, and up to where that goes. Both by the
/// same snapshot: an event committed in between belongs to the next round.
fn news(snapshot: &Snapshot, since: u64, about: Option<&str>) -> (String, u64) {
    let mut text = String::new();
    for event in &snapshot.events {
        if event.seq > since && concerns(event, about) {
            text.push_str(&wire::json(&**event));
            text.push('\n');
        }
    }
    (text, since.max(snapshot.events.last().map_or(0, |event| event.seq)))
}

fn concerns(event: &Event, about: Option<&str>) -> bool {
    about.is_none_or(|about| event.name.as_ref().is_some_and(|name| name.as_str() == about))
}
