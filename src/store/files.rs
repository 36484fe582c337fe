//! Taking a merge of the files into the store: what [`crate::desired`] decided, in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Level, Owner, Sandbox, SandboxName, Spec, Time};
use crate::store::core::Core;
use crate::store::edit::{self, Delete, Precondition, Put, Refusal};
use crate::store::{FileRecord, StoreError};

/// What a look at the files comes to. Pure data; everything was decided when it was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileChanges {
    /// The directory they were read from, once it is to be believed.
    pub root: Option<(u64, u64)>,
    pub declared: Vec<Declared>,
    /// Sandboxes whose file has another path now.
    pub moved: Vec<(SandboxName, String)>,
    /// Sandboxes whose file is gone for good.
    pub pruned: Vec<SandboxName>,
    /// New knowledge of each file that was looked at; `None` forgets it.
    pub records: BTreeMap<String, Option<FileRecord>>,
    /// What to tell: the sandbox it is about, if any, reason and message.
    pub warnings: Vec<(Option<SandboxName>, &'static str, String)>,
}

/// One sandbox as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Declared {
    pub name: SandboxName,
    pub path: String,
    pub labels: BTreeMap<String, String>,
    pub spec: Spec,
}

impl FileChanges {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Names whose wish may have changed.
    pub fn names(&self) -> impl Iterator<Item = &SandboxName> {
        let declared = self.declared.iter().map(|declared| &declared.name);
        let recorded = self.records.values().flatten().flat_map(|record| &record.names);
        declared.chain(&self.pruned).chain(recorded)
    }
}

/// Applies all of it. What no longer fits, because the API was faster, is left for the next look.
pub fn apply(core: &mut Core, changes: FileChanges, now: Time) -> Result<(), StoreError> {
    if let Some(root) = changes.root {
        core.set_root(root)?;
    }
    for (name, path) in changes.moved {
        if let Some(old) = core.get(name.as_str())
            && matches!(old.owner, Owner::File(_))
        {
            core.put(Sandbox { owner: Owner::File(path), ..Sandbox::clone(&old) })?;
        }
    }
    let mut records = changes.records;
    for declared in changes.declared {
        let put = Put {
            name: declared.name,
            labels: declared.labels,
            spec: declared.spec,
            owner: Owner::File(declared.path),
            uid: None,
            precondition: Precondition::None,
        };
        let (name, path) = (put.name.clone(), put.owner.clone());
        // Refused otherwise only if the API has taken the name since the look; the next one will say so.
        if let (Err(Refusal::NoRoom { why, .. }), Owner::File(path)) =
            (edit::put(core, put, now)?, path)
        {
            not_taken(core, &mut records, (&path, &name, why), now)?;
        }
    }
    for name in changes.pruned {
        let owned = core.get(name.as_str()).filter(|old| matches!(old.owner, Owner::File(_)));
        let how = Delete { uid: owned.map(|old| old.uid), keep_workspace: true, force: false };
        if how.uid.is_some() {
            let _ = edit::delete(core, name.as_str(), how, now)?;
        }
    }
    for (path, record) in records {
        core.put_file(&path, record)?;
    }
    for (about, reason, message) in changes.warnings {
        core.event(about.as_ref(), Level::Warning, (reason, message), now)?;
    }
    Ok(())
}

/// Notes that a file is not in force as it is, which is tried again at each full scan. Told once.
fn not_taken(
    core: &mut Core,
    records: &mut BTreeMap<String, Option<FileRecord>>,
    (path, name, why): (&str, &SandboxName, String),
    now: Time,
) -> Result<(), StoreError> {
    let old = core.now().files.get(path).map(|old| FileRecord::clone(old));
    let known = old.as_ref().and_then(|old| old.conflicts.get(name)) == Some(&why);
    let is_there = core.get(name.as_str()).is_some();
    let record = records.entry(path.to_owned()).or_insert(old);
    if let Some(record) = record {
        record.names.retain(|one| is_there || one != name);
        record.conflicts.insert(name.clone(), why.clone());
    }
    if known {
        return Ok(());
    }
    core.event(Some(name), Level::Warning, ("NoRoom", format!("{path}: {why}")), now)
}

/// Lets held removals go ahead: forgets that they were held, and when they were first missed is
/// long enough ago for the next look to take them. A store that was rebuilt is taken as it is.
pub fn confirm(core: &mut Core) -> Result<Vec<SandboxName>, StoreError> {
    core.confirm_rescue()?;
    let held: Vec<(String, Arc<FileRecord>)> = core
        .now()
        .files
        .iter()
        .filter(|(_, record)| record.held.is_some())
        .map(|(path, record)| (path.clone(), Arc::clone(record)))
        .collect();
    let mut names = Vec::new();
    for (path, record) in held {
        names.extend(record.missing.keys().cloned());
        let confirmed = FileRecord { held: None, confirmed: true, ..FileRecord::clone(&record) };
        core.put_file(&path, Some(confirmed))?;
    }
    Ok(names)
}
