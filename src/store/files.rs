//! Taking a merge of the files into the store: what [`crate::desired`] decided, in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::store::core::Core;
use crate::store::edit::{self, Delete, Precondition, Put, Refusal};
use crate::store::{FileRecord, StoreError};
use sodium_model::event;
use sodium_model::{Level, Owner, Sandbox, SandboxName, Spec, Time};

/// What a look at the files comes to. Pure data; everything was decided when it was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FileChanges {
    /// The directory they were read from, once it is to be believed.
    pub root: Option<(u64, u64)>,
    pub declared: Vec<Declared>,
    /// Sandboxes whose file has another path now.
    pub moved: Vec<Moved>,
    /// Sandboxes whose file is gone for good.
    pub pruned: Vec<Owned>,
    /// New knowledge of each file that was looked at; `None` forgets it.
    pub records: BTreeMap<String, Option<FileRecord>>,
    /// What to tell: the sandbox it is about, if any, reason and message.
    pub warnings: Vec<(Option<SandboxName>, &'static str, String)>,
}

/// A sandbox of a file's, when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub name: SandboxName,
    pub uid: Uuid,
    pub path: String,
}

/// One that another file declares now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub was: Owned,
    pub to: String,
}

impl Owned {
    pub fn of(sandbox: &Sandbox, path: &str) -> Self {
        Self { name: sandbox.name.clone(), uid: sandbox.uid, path: path.to_owned() }
    }

    /// The sandbox, if it is that file's still.
    fn still(&self, core: &Core) -> Option<Arc<Sandbox>> {
        let owner = Owner::File(self.path.clone());
        core.get(self.name.as_str()).filter(|now| now.uid == self.uid && now.owner == owner)
    }
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
        declared.chain(self.pruned.iter().map(|pruned| &pruned.name)).chain(recorded)
    }
}

/// Sandboxes that are declared in one transaction, but for those of one file, which are all in it: a directory of
/// specs keeps nobody else from the store for long.
pub const DECLARED_AT_ONCE: usize = 256;

impl FileChanges {
    /// The same in several steps, each of which holds by itself. What goes goes first: as long as a file's record has
    /// its name, it is missed again. What moves comes to be in the record of its new file before it goes from that of
    /// its old one.
    pub fn slices(mut self, at_once: usize) -> Vec<Self> {
        let pruned = std::mem::take(&mut self.pruned);
        let going = |pruned: &[Owned]| Self { pruned: pruned.to_vec(), ..Self::default() };
        let mut slices: Vec<Self> = pruned.chunks(at_once).map(going).collect();
        let mut slice = Self { warnings: std::mem::take(&mut self.warnings), ..Self::default() };
        let mut moved: BTreeMap<String, Vec<Moved>> = BTreeMap::new();
        for one in std::mem::take(&mut self.moved) {
            moved.entry(one.to.clone()).or_default().push(one);
        }
        let mut declared = std::mem::take(&mut self.declared);
        declared.sort_by_key(|one| !moved.contains_key(&one.path));
        let mut declared = declared.into_iter().peekable();
        while let Some(one) = declared.next() {
            let is_last_of_file = declared.peek().is_none_or(|next| next.path != one.path);
            if is_last_of_file {
                slice.moved.extend(moved.remove(&one.path).into_iter().flatten());
                slice.records.extend(self.records.remove_entry(&one.path));
            }
            slice.declared.push(one);
            if is_last_of_file && slice.declared.len() >= at_once {
                slices.push(std::mem::take(&mut slice));
            }
        }
        slice.moved.extend(moved.into_values().flatten());
        slices.push(slice);
        // Of files that declare nothing, there may be as many as there are files.
        while self.records.len() > at_once {
            let rest = self.records.keys().nth(at_once).cloned().unwrap_or_default();
            let later = self.records.split_off(&rest);
            let records = std::mem::replace(&mut self.records, later);
            slices.push(Self { records, ..Self::default() });
        }
        // What is left are the last records, and the directory they are of.
        slices.push(self);
        slices.retain(|slice| !slice.is_empty());
        slices
    }
}

/// Applies all of it. What no longer fits, because the API was faster or there is no room, is left for a later look:
/// returns the files of which something was.
pub fn apply(
    core: &mut Core,
    changes: FileChanges,
    now: Time,
) -> Result<BTreeSet<String>, StoreError> {
    if let Some(root) = changes.root {
        core.set_root(root)?;
    }
    for Moved { was, to } in changes.moved {
        if let Some(old) = was.still(core) {
            core.put(Sandbox { owner: Owner::File(to), ..Sandbox::clone(&old) })?;
        }
    }
    let (mut records, mut refused) = (changes.records, Refused::new());
    for declared in changes.declared {
        let path = declared.path.clone();
        let put = Put {
            name: declared.name,
            labels: declared.labels,
            spec: declared.spec,
            owner: Owner::File(declared.path),
            uid: None,
            precondition: Precondition::None,
        };
        let name = put.name.clone();
        match edit::put(core, put, now)? {
            Ok(_) => (),
            Err(Refusal::NoRoom { why, .. }) => {
                refused.entry(path).or_default().push((name, "NoRoom", why));
            }
            // The API has taken the name since the look.
            Err(refusal) => {
                refused.entry(path).or_default().push((name, "Conflict", refusal.to_string()));
            }
        }
    }
    for was in changes.pruned {
        if was.still(core).is_some() {
            let how = Delete { uid: Some(was.uid), keep_workspace: true, force: false };
            let _ = edit::delete(core, was.name.as_str(), how, now)?;
        }
    }
    let not_taken = refused.keys().cloned().collect();
    for (path, refused) in refused {
        note_refused(core, &mut records, (&path, refused), now)?;
    }
    for (path, record) in records {
        core.put_file(&path, record)?;
    }
    for (about, reason, message) in changes.warnings {
        core.event(about.as_ref(), Level::Warning, (reason, message), now)?;
    }
    Ok(not_taken)
}

/// What of each file was not taken: which sandbox, and why.
type Refused = BTreeMap<String, Vec<(SandboxName, &'static str, String)>>;

/// Notes that a file is not in force as it is. Told once.
fn note_refused(
    core: &mut Core,
    records: &mut BTreeMap<String, Option<FileRecord>>,
    (path, refused): (&str, Vec<(SandboxName, &'static str, String)>),
    now: Time,
) -> Result<(), StoreError> {
    let old = core.now().files.get(path).map(|old| FileRecord::clone(old));
    let record = records.entry(path.to_owned()).or_insert_with(|| old.clone());
    let Some(record) = record else { return Ok(()) };
    for (name, _, why) in &refused {
        let found = core.get(name.as_str()).map(|found| found.owner.clone());
        let is_its_own = found == Some(Owner::File(path.to_owned()));
        record.names.retain(|one| is_its_own || one != name);
        record.conflicts.insert(name.clone(), event::message(why.clone()));
    }
    let old = old.unwrap_or_default();
    if record.is_known_as(&old) {
        return Ok(());
    }
    for (name, reason, why) in refused {
        if old.conflicts.get(&name) != Some(&event::message(why.clone())) {
            core.event(Some(&name), Level::Warning, (reason, format!("{path}: {why}")), now)?;
        }
    }
    Ok(())
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
        let mut confirmed = FileRecord { held: None, ..FileRecord::clone(&record) };
        confirmed.confirmed_names.extend(record.missing.keys().cloned());
        core.put_file(&path, Some(confirmed))?;
    }
    Ok(names)
}
