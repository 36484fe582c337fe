//! Checkpoints: what can be refused beforehand is, with the reason, and restoring into a new name.

use std::sync::Arc;

use uuid::Uuid;

use crate::api::caller::Caller;
use crate::api::{ApiError, Shared, wait};
use crate::reconcile::exec::ExecError;
use crate::store::edit::{self, Edited, Precondition, Put, Refusal};
use sodium_model::plan::diff::{self, Effect};
use sodium_model::{Checkpoint, InUse, Owner, Sandbox, SandboxName, Spec, Violation};

/// Whether a checkpoint could be taken as things are.
pub(super) fn may_keep(api: &Shared, sandbox: &Sandbox) -> Result<(), ApiError> {
    if api.handle.is_busy(sandbox) {
        return Err(ApiError::Conflict(
            "what is run inside by exec cannot be kept; end it first".to_owned(),
        ));
    }
    Ok(())
}

/// What the sandbox can go back to, if it can and may.
pub(super) fn may_restore(api: &Shared, sandbox: &Sandbox) -> Result<Arc<Checkpoint>, ApiError> {
    let saved = sandbox.history.saved.clone();
    let saved = saved.ok_or_else(|| Refusal::NoCheckpoint { name: sandbox.name.clone() })?;
    may_start(api, &saved.spec)?;
    let here = api.handle.runtime(&saved.spec).unwrap_or_else(|why| why);
    if here != saved.runtime {
        let by = &saved.runtime;
        let why = format!("the checkpoint was taken by {by}, and here is {here}");
        return Err(ApiError::Conflict(why));
    }
    Ok(saved)
}

/// Whether this host allows what is about to be started. Asked again when it is.
fn may_start(api: &Shared, spec: &Spec) -> Result<(), ApiError> {
    let faults = api.rules.get().allowed.violations(spec);
    if faults.is_empty() { Ok(()) } else { Err(ApiError::Invalid(faults)) }
}

/// The same, in place: with the spec of now.
pub(super) fn may_go_back(api: &Shared, sandbox: &Sandbox) -> Result<(), ApiError> {
    may_start(api, &sandbox.spec)?;
    let saved = may_restore(api, sandbox)?;
    let change = diff::classify(&saved.spec, &sandbox.spec, &InUse::default());
    if change.effect > Effect::InPlace {
        let fields = change.names();
        let why = format!("the spec has changed since the checkpoint was taken: {fields}");
        return Err(ApiError::Conflict(why));
    }
    Ok(())
}

/// Makes a new sandbox that goes on from the checkpoint of another one.
pub(super) async fn restore_to(
    api: &Shared,
    caller: &Caller,
    sandbox: &Sandbox,
    to: &str,
) -> Result<Arc<Sandbox>, ApiError> {
    let name = SandboxName::try_from(to)
        .map_err(|error| ApiError::Invalid(vec![Violation::new("to", error.to_string())]))?;
    let saved = may_restore(api, sandbox)?;
    let uid = Uuid::now_v7();
    let put = Put {
        name,
        labels: sandbox.labels.clone(),
        spec: saved.spec.clone(),
        owner: Owner::Api,
        uid: Some(uid),
        precondition: Precondition::Absent,
    };
    // Asked again with the write; but what is refused anyway is not copied first.
    let before = api.store.snapshot();
    if before.sandboxes.contains_key(&put.name) {
        return Err(Refusal::Exists { name: put.name }.into());
    }
    if let Some(refusal) = edit::no_room(&api.rules.get().allowed.totals, &before, None, &put) {
        return Err(refusal.into());
    }
    api.handle.copy_checkpoint(sandbox.uid, uid, saved.dir.clone()).await?;
    let now = api.now();
    let made = api.write_for(caller, move |core| {
        let made = match edit::put(core, put, now)? {
            Ok(made) => made,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut new = Sandbox::clone(made.sandbox());
        new.history.asleep = Some(Arc::clone(&saved));
        new.history.saved = Some(saved);
        core.put(new).map(|new| Ok(Edited::Created(new)))
    });
    let made = match made.await? {
        Ok(made) => made,
        Err(refusal) => {
            api.handle.drop_checkpoints(uid).await;
            return Err(refusal.into());
        }
    };
    Ok(Arc::clone(made.sandbox()))
}

/// Waits until a request for a checkpoint was answered.
pub(super) async fn kept(
    api: &Shared,
    wish: &Sandbox,
    within: std::time::Duration,
) -> Result<(), ApiError> {
    let (uid, request) = (wish.uid, wish.power.checkpoint);
    let answered = move |now: Option<&Arc<Sandbox>>| {
        let Some(now) = now.filter(|now| now.uid == uid) else {
            return Some(Err(ApiError::NotFound));
        };
        if now.history.checkpointed >= request {
            let fault = now.history.checkpoint_fault.clone();
            return Some(fault.map_or(Ok(()), |why| Err(ApiError::Failed(why))));
        }
        now.live().is_none().then(|| Err(ApiError::Exec(ExecError::NotRunning)))
    };
    wait::until(api, &wish.name, within, ("no checkpoint", answered)).await?
}
