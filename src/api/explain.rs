//! `/v1/sandboxes/NAME/explain`: why a sandbox is as it is. Who set which field and when, what was seen, what was
//! decided from that, and when the next thing is due.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::api::request::Path;
use crate::api::sandboxes::find;
use crate::api::{ApiError, Shared};
use sodium_api::{Decided, Explained, FieldEdit, Seen};
use sodium_model::plan::Next;
use sodium_model::{Edit, Event, Sandbox};
use sodium_shim::spool::{Chunk, Reader};

/// How much of what an instance said last is shown.
const LAST_OUTPUT_BYTES: u64 = 4096;
/// What happened last; the rest is in `/v1/events`.
const EVENT_COUNT: usize = 20;

pub(super) async fn explain(
    State(api): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Explained>, ApiError> {
    let sandbox = find(&api, &id)?;
    let decided = match api.handle.explain(sandbox.name.clone(), api.now()).await {
        Some(plan) => {
            let (step, at) = match &plan.next {
                Next::Do(step) => (step.word(), None),
                Next::Wait(at) => ("wait", Some(*at)),
                Next::Settled => ("nothing", None),
            };
            Decided { next: step.to_owned(), due_at: at, why: plan.why }
        }
        None => {
            let (next, why) = ("look again", "it could not be seen just now");
            Decided { next: next.to_owned(), due_at: None, why: why.to_owned() }
        }
    };
    let last_output = last_output(&api, &sandbox).await;
    let snapshot = api.store.snapshot();
    let about = |event: &&Arc<Event>| event.name.as_ref() == Some(&sandbox.name);
    let events = snapshot.events.iter().rev().filter(about).take(EVENT_COUNT);
    let mut events: Vec<Event> = events.map(|event| Event::clone(event)).collect();
    events.reverse();
    let instance = sandbox.instance.as_ref();
    Ok(Json(Explained {
        name: sandbox.name.clone(),
        owner: sandbox.owner.clone(),
        generation: sandbox.generation,
        fields: fields(&sandbox),
        edits: sandbox.history.edits.clone(),
        power: sandbox.power,
        observed: Seen {
            phase: sandbox.status.phase,
            conditions: sandbox.status.conditions.clone(),
            walls: sandbox.status.walls.clone(),
            iid: instance.map(|one| one.iid.clone()),
            runs_generation: sandbox.live().map(|one| one.generation),
            last_exit: sandbox.last_exit().cloned(),
            last_output,
            failures: sandbox.history.failures,
        },
        decided,
        events,
    }))
}

/// The end of what the last instance said, if it has ended and that is still there.
async fn last_output(api: &Shared, sandbox: &Sandbox) -> Option<String> {
    let (exit, spool) = (sandbox.last_exit()?, api.handle.spool(sandbox.uid)?);
    let (from, to) = (exit.console_from, exit.console_to);
    crate::reconcile::blocking(move || {
        let mut reader = Reader::new(&spool, to.saturating_sub(LAST_OUTPUT_BYTES).max(from));
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 4096];
        while let Ok(Chunk::Bytes { offset, count }) = reader.read(&mut buffer) {
            let wanted = usize::try_from(to.saturating_sub(offset)).unwrap_or(count).min(count);
            bytes.extend_from_slice(&buffer[..wanted]);
            if wanted < count || bytes.len() as u64 >= LAST_OUTPUT_BYTES {
                break;
            }
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    })
    .await
}

/// For each field, the edit that set it to what it is. What none of those that are remembered has changed is as
/// it was declared.
fn fields(sandbox: &Sandbox) -> BTreeMap<String, FieldEdit> {
    let mut fields = BTreeMap::new();
    for edit in &sandbox.history.edits {
        let Edit { generation, at, by, fields: set, .. } = edit;
        for field in set {
            let edit = FieldEdit { generation: *generation, at: *at, by: by.clone() };
            fields.insert(field.clone(), edit);
        }
    }
    fields
}
