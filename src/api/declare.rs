//! Where the API puts what it is told: the database, or a file in the directory of specs.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::api::{ApiError, Shared};
use crate::desired::{write, yaml};
use crate::model::{Owner, Sandbox, SandboxName, draft};
use crate::store::edit::{self, Delete, Edited, Precondition, Put, Refusal};
use crate::store::snapshot;

/// See [`crate::config::StoreKind`].
pub enum Declare {
    Sqlite,
    Files { dir: PathBuf },
}

impl Declare {
    /// Who owns what the API declares under this name.
    pub(super) fn owner(&self, name: &SandboxName) -> Owner {
        match self {
            Self::Sqlite => Owner::Api,
            Self::Files { .. } => Owner::File(write::file_name(name)),
        }
    }
}

/// Creates or changes a sandbox. On return it is durable.
pub(super) async fn put(api: &Shared, put: Put) -> Result<Edited, ApiError> {
    let now = api.now();
    match &api.declare {
        Declare::Sqlite => Ok(api.store.write(move |core| edit::put(core, put, now)).await??),
        Declare::Files { dir } => {
            let before = api.store.snapshot();
            let old = before.sandboxes.get(&put.name);
            allowed(&before.epoch, old.map(|old| &**old), &put)?;
            let text = yaml::write(&document(&put));
            let (dir, name) = (dir.clone(), put.name.clone());
            let written = crate::reconcile::blocking(move || write::write(&dir, &name, &text));
            written.await.map_err(|source| ApiError::Files { verb: "write", source })?;
            api.watch.look().await;
            let after = api.store.snapshot();
            let after = after.sandboxes.get(&put.name).cloned();
            let after = after.ok_or_else(|| ApiError::Conflict(not_taken(api, &put.name)))?;
            Ok(match old {
                None => Edited::Created(after),
                Some(old) if old.rv == after.rv => Edited::Unchanged(after),
                Some(_) => Edited::Changed(after),
            })
        }
    }
}

/// Takes a sandbox away, with its file if it has one that the API wrote.
pub(super) async fn delete(api: &Shared, sandbox: &Sandbox, how: Delete) -> Result<(), ApiError> {
    if let Declare::Files { dir } = &api.declare
        && sandbox.owner == api.declare.owner(&sandbox.name)
    {
        let (dir, name) = (dir.clone(), sandbox.name.clone());
        let removed = crate::reconcile::blocking(move || write::remove(&dir, &name));
        removed.await.map_err(|source| ApiError::Files { verb: "remove", source })?;
    } else if let Owner::File(_) = sandbox.owner {
        let (name, owner) = (sandbox.name.clone(), sandbox.owner.clone());
        return Err(Refusal::Owned { name, owner }.into());
    }
    let (name, now) = (sandbox.name.clone(), api.now());
    let how = Delete { uid: Some(sandbox.uid), ..how };
    api.store.write(move |core| edit::delete(core, name.as_str(), how, now)).await??;
    Ok(())
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

/// Why the file that was written declares nothing.
fn not_taken(api: &Shared, name: &SandboxName) -> String {
    let snapshot = api.store.snapshot();
    let record = snapshot.files.get(&write::file_name(name));
    let fault = record.and_then(|record| record.faults.first().map(ToString::to_string));
    let conflict = record.and_then(|record| record.conflicts.get(name).cloned());
    fault.or(conflict).unwrap_or_else(|| "the directory of specs could not be read".to_owned())
}
