//! Where the API puts what it is told: the database, or a file in the directory of specs.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::audit::Act;
use crate::api::caller::Caller;
use crate::api::{Api, ApiError, Shared};
use crate::desired::write::{self, WriteError, Writer};
use crate::store::edit::{self, Delete, Edited, Precondition, Put, Refusal};
use crate::store::snapshot;
use sodium_model::{Owner, Sandbox, SandboxName, draft};

/// See [`crate::config::StoreKind`].
pub enum Declare {
    Sqlite,
    Files(Arc<Writer>),
}

/// Who owns what the API declares under this name: with specs in files, the file that it is in already.
pub(super) fn owner(api: &Api, name: &SandboxName) -> Owner {
    match &api.declare {
        Declare::Sqlite => Owner::Api,
        Declare::Files(_) => {
            let snapshot = api.store.snapshot();
            let old = snapshot.sandboxes.get(name).map(|old| &old.owner);
            let file = old.filter(|owner| matches!(owner, Owner::File(_))).cloned();
            file.unwrap_or_else(|| Owner::File(write::file_name(name)))
        }
    }
}

/// Creates or changes a sandbox. On return it is durable.
pub(super) async fn put(api: &Shared, caller: &Caller, put: Put) -> Result<Edited, ApiError> {
    let now = api.now();
    match &api.declare {
        Declare::Sqlite => {
            Ok(api.write_for(caller, move |core| edit::put(core, put, now)).await??)
        }
        Declare::Files(writer) => {
            let before = api.store.snapshot();
            let old = before.sandboxes.get(&put.name);
            allowed(&before.epoch, old.map(|old| &**old), &put)?;
            let totals = api.rules.get().allowed.totals;
            if let Some(refusal) = edit::no_room(&totals, &before, old.map(|old| &**old), &put) {
                return Err(refusal.into());
            }
            let file = match &put.owner {
                Owner::File(file) => file.clone(),
                Owner::Api => write::file_name(&put.name),
            };
            let (writer, rules) = (Arc::clone(writer), api.rules.get());
            let (at, name, document) = (file.clone(), put.name.clone(), document(&put));
            let in_force = old.map(|old| Arc::clone(&old.spec));
            let (told, by) = (Arc::clone(api), caller.to_string());
            // The file owns what comes of it, so nothing else says who wrote it, whether or not he waits for it.
            let write = move || {
                writer.put(&at, (&name, in_force.as_deref()), &document, &rules)?;
                told.audit.note(&name, Act::FileWritten, &by, format!("{at} was written"));
                Ok(())
            };
            let written = crate::reconcile::blocking(write).await;
            written.map_err(|error| refused("write", error))?;
            api.watch.look().await;
            let after = api.store.snapshot();
            let faulty = after.files.get(&file).is_some_and(|record| !record.faults.is_empty());
            let after = after.sandboxes.get(&put.name).filter(|_| !faulty).cloned();
            let after =
                after.ok_or_else(|| ApiError::Conflict(not_taken(api, &file, &put.name)))?;
            Ok(match old {
                None => Edited::Created(after),
                Some(old) if old.rv == after.rv => Edited::Unchanged(after),
                Some(_) => Edited::Changed(after),
            })
        }
    }
}

/// Takes a sandbox away, with its document if the API keeps specs in files.
pub(super) async fn delete(
    api: &Shared,
    caller: &Caller,
    sandbox: &Sandbox,
    how: Delete,
) -> Result<(), ApiError> {
    match (&api.declare, &sandbox.owner) {
        (Declare::Sqlite, Owner::File(_)) => {
            let (name, owner) = (sandbox.name.clone(), sandbox.owner.clone());
            return Err(Refusal::Owned { name, owner }.into());
        }
        (Declare::Files(writer), Owner::File(file)) => {
            let (writer, at) = (Arc::clone(writer), file.clone());
            let name = sandbox.name.clone();
            let (told, by) = (Arc::clone(api), caller.to_string());
            let remove = move || {
                writer.remove(&at, &name)?;
                let what = format!("its document was removed from {at}");
                told.audit.note(&name, Act::FileRemoved, &by, what);
                Ok(())
            };
            let removed = crate::reconcile::blocking(remove).await;
            removed.map_err(|error| refused("remove", error))?;
        }
        (Declare::Sqlite | Declare::Files(_), Owner::Api) => (),
    }
    let (name, now) = (sandbox.name.clone(), api.now());
    let how = Delete { uid: Some(sandbox.uid), ..how };
    api.write_for(caller, move |core| edit::delete(core, name.as_str(), how, now)).await??;
    Ok(())
}

fn refused(verb: &'static str, error: WriteError) -> ApiError {
    match error {
        WriteError::Sys(error) => ApiError::Files { verb, source: error.source },
        error @ (WriteError::Name(_)
        | WriteError::Faults { .. }
        | WriteError::TooLarge { .. }
        | WriteError::Contended(_)) => ApiError::Conflict(error.to_string()),
    }
}

/// The rules of the store, asked before a file is written: the watcher cannot answer a client.
fn allowed(epoch: &str, old: Option<&Sandbox>, put: &Put) -> Result<(), Refusal> {
    let name = put.name.clone();
    match (old, &put.precondition) {
        (None, Precondition::Unchanged(_) | Precondition::Uid(_)) => Err(Refusal::NotFound),
        (None, _) => Ok(()),
        (Some(_), Precondition::Absent) => Err(Refusal::Exists { name }),
        (Some(old), _) if old.deletion.is_some() => Err(Refusal::Terminating { name }),
        (Some(old), _) if old.owner != put.owner => {
            Err(Refusal::Owned { name, owner: old.owner.clone() })
        }
        (Some(old), Precondition::Unchanged(version)) => {
            let current = snapshot::version(epoch, old.rv);
            if *version == current { Ok(()) } else { Err(Refusal::Stale { name, current }) }
        }
        (Some(old), Precondition::Uid(uid)) if *uid != old.uid => {
            Err(Refusal::Uid { name, uid: old.uid })
        }
        (Some(_), Precondition::None | Precondition::Uid(_)) => Ok(()),
    }
}

fn document(put: &Put) -> Value {
    json!({
        "apiVersion": draft::API_VERSION,
        "kind": draft::KIND,
        "metadata": {"name": put.name, "labels": put.labels},
        "spec": put.spec,
    })
}

/// Why the file that was written does not declare it.
fn not_taken(api: &Api, file: &str, name: &SandboxName) -> String {
    let snapshot = api.store.snapshot();
    let record = snapshot.files.get(file);
    let fault = record.and_then(|record| record.faults.first().map(ToString::to_string));
    let conflict = record.and_then(|record| record.conflicts.get(name).cloned());
    fault.or(conflict).unwrap_or_else(|| "the directory of specs could not be read".to_owned())
}
