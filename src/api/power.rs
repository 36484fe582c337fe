//! Power verbs, input, and tickets.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};

use crate::api::audit::Act;
use crate::api::auth::{self, TICKET_MS, Ticket};
use crate::api::caller::Caller;
use crate::api::request::{Path, Query};
use crate::api::sandboxes::{find, shown};
use crate::api::{ApiError, Shared, checkpoint, request, seed, wait};
use crate::reconcile::link::Command;
use crate::store::Core;
use crate::store::edit::{self, Verb};
use sodium_api::{Success, TicketQuery, VerbQuery};
use sodium_model::{Sandbox, Span, Violation};

pub(super) async fn verb(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((id, word)): Path<(String, String)>,
    Query(query): Query<VerbQuery>,
) -> Result<Response, ApiError> {
    let sandbox = find(&api, &id)?;
    let within = wait::parse(query.wait.as_deref())?;
    let known = Verb::WORDS.iter().find(|(name, _)| *name == word);
    let (_, verb) = known.copied().ok_or(ApiError::NotFound)?;
    if verb == Verb::Pause && !api.handle.can_freeze(&sandbox) {
        let why = "this host has no cgroup v2, which pausing needs";
        return Err(ApiError::Conflict(why.to_owned()));
    }
    match verb {
        Verb::Checkpoint => checkpoint::may_keep(&api, &sandbox)?,
        Verb::Restore => match &query.to {
            Some(to) => return restore_to(&api, &caller, (&sandbox, to), within).await,
            None => checkpoint::may_go_back(&api, &sandbox)?,
        },
        Verb::Start | Verb::Stop | Verb::Kill | Verb::Restart | Verb::Pause | Verb::Resume => (),
    }
    let (name, uid, now) = (sandbox.name.clone(), sandbox.uid, api.now());
    api.handle.touch(&sandbox);
    let ask = move |core: &mut Core| edit::power_of(core, (name.as_str(), uid), verb, now);
    let wish = api.write_for(&caller, ask).await??;
    if let Some(within) = within {
        match verb {
            Verb::Checkpoint => checkpoint::kept(&api, &wish, within).await?,
            Verb::Start | Verb::Restart | Verb::Restore => {
                wait::started(&api, &wish, within).await?
            }
            Verb::Stop | Verb::Kill => wait::stopped(&api, &wish, within).await?,
            Verb::Pause => wait::stands(&api, &wish, within, true).await?,
            Verb::Resume => wait::stands(&api, &wish, within, false).await?,
        }
    }
    let snapshot = api.store.snapshot();
    let after = snapshot.find(&id).ok_or(ApiError::NotFound)?;
    Ok(shown(&snapshot.epoch, after, axum::http::StatusCode::OK))
}

async fn restore_to(
    api: &Shared,
    caller: &Caller,
    (sandbox, to): (&Sandbox, &str),
    within: Option<Duration>,
) -> Result<Response, ApiError> {
    let made = checkpoint::restore_to(api, caller, sandbox, to).await?;
    if let Some(within) = within {
        wait::started(api, &made, within).await?;
    }
    let snapshot = api.store.snapshot();
    let after = snapshot.find(to).ok_or(ApiError::NotFound)?;
    Ok(shown(&snapshot.epoch, after, axum::http::StatusCode::CREATED))
}

pub(super) async fn input(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: request::Given,
) -> Result<Json<Success>, ApiError> {
    let sandbox = find(&api, &id)?;
    seed::send_input(&api, &caller, &sandbox, body).await
}

pub(super) async fn resize(
    State(api): State<Shared>,
    Path(id): Path<String>,
    body: request::Given,
) -> Result<Json<Success>, ApiError> {
    let sandbox = find(&api, &id)?;
    let node = request::json(body).await?.into();
    let mut size = [None, None];
    request::read(&node, &["cols", "rows"], |faults, key, path, value| {
        let count = faults.count(path, value, 10_000).and_then(|count| u16::try_from(count).ok());
        size[usize::from(key == "rows")] = count;
    })?;
    let [Some(cols), Some(rows)] = size else {
        return Err(ApiError::Invalid(vec![Violation::new("", "cols and rows are both needed")]));
    };
    api.handle.command(&sandbox, Command::Resize { cols, rows })?;
    Ok(Json(Success::DONE))
}

/// A one-use, short-lived ticket for the console of one sandbox.
pub(super) async fn ticket(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<TicketQuery>,
) -> Result<Json<sodium_api::Ticket>, ApiError> {
    let sandbox = find(&api, &id)?;
    let now = api.now();
    let expires_at = now.after(Span(TICKET_MS));
    let read_only = query.read_only.0;
    let (grant, by) = (caller.grant.clone(), caller.to_string());
    let ticket = Ticket { sandbox: sandbox.uid, read_only, expires_at, grant, by };
    let text = api.tickets.issue(ticket, now);
    let text =
        text.ok_or_else(|| ApiError::Conflict("too many tickets wait to be used".to_owned()))?;
    let what = if read_only { "to read only" } else { "for everything" };
    let what = format!("ticket {} was made, {what}", auth::ticket_id(&text));
    api.audit.note(&sandbox.name, Act::TicketIssued, &caller, what);
    Ok(Json(sodium_api::Ticket { ticket: text, expires_at, read_only }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verbs_that_are_described_are_those_that_are_known() {
        let words = Verb::WORDS.iter().map(|(word, _)| *word);
        let described = words.clone().map(|word| {
            let verb = serde_json::from_value::<sodium_api::PowerVerb>(word.into()).unwrap();
            serde_json::to_value(verb).unwrap()
        });
        assert!(described.eq(words));
        let schema = sodium_api::openapi::document()["components"]["schemas"]["PowerVerb"].take();
        assert_eq!(schema["oneOf"].as_array().map(Vec::len), Some(Verb::WORDS.len()));
    }
}
