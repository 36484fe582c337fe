//! `/v1/events`: what happened, oldest first; with `follow`, as it happens.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;

use crate::api::caller::Caller;
use crate::api::sandboxes::{Pairs, flag};
use crate::api::{ApiError, Kind, Shared, list};
use crate::model::Event;
use crate::store::Snapshot;

pub(super) async fn list(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let about = pairs.get("sandbox").cloned();
    let since: u64 = match pairs.get("since") {
        Some(text) => text.parse().map_err(|_| {
            ApiError::BadRequest(format!("since is {text:?}, not the number of an event"))
        })?,
        None => 0,
    };
    if !flag(&pairs, "follow") {
        let snapshot = api.store.snapshot();
        let wanted = |event: &&Arc<Event>| event.seq > since && concerns(event, about.as_deref());
        let events: Vec<Arc<Event>> = snapshot.events.iter().filter(wanted).cloned().collect();
        return Ok(list::answer("items", events.into_iter().map(|event| json!(*event)), ""));
    }
    let (place, commits) = (api.place(Kind::Follower, &caller)?, api.store.watch());
    let lines = stream::unfold(
        (commits, since, (about, place)),
        |(mut commits, mut since, (about, place))| async move {
            loop {
                let snapshot = Arc::clone(&commits.borrow_and_update());
                let (text, newest) = news(&snapshot, since, about.as_deref());
                since = newest;
                if !text.is_empty() {
                    let next = (commits, since, (about, place));
                    return Some((Ok::<_, Infallible>(Bytes::from(text)), next));
                }
                commits.changed().await.ok()?;
            }
        },
    );
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

/// What a follower who has seen everything up to `since` is told, and up to where that goes. Both by the
/// same snapshot: an event committed in between belongs to the next round.
fn news(snapshot: &Snapshot, since: u64, about: Option<&str>) -> (String, u64) {
    let mut text = String::new();
    for event in &snapshot.events {
        if event.seq > since && concerns(event, about) {
            text.push_str(&format!("{}\n", json!(**event)));
        }
    }
    (text, since.max(snapshot.events.last().map_or(0, |event| event.seq)))
}

fn concerns(event: &Event, about: Option<&str>) -> bool {
    about.is_none_or(|about| event.name.as_ref().is_some_and(|name| name.as_str() == about))
}
