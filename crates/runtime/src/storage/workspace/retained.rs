//! Workspaces of sandboxes that are gone, retained until their undo period ends. Each belongs to the owner that left
//! it, and to nobody else of the same name.
//!
//! ```text
//!   SANDBOXES/.removed/NAME.UID{,.img,.volume}          what was left, a directory or a volume, and beside it
//!   SANDBOXES/.removed/NAME.UID.owner                   whose it is
//!   SANDBOXES/.removed/NAME.before-restore-N{,…}        what a restore replaced; nobody's until somebody takes it
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::storage::volume;
use sodium_model::{Owner, SandboxName};
use sodium_sys::{SysError, own, path};

/// Where they wait for their undo period to end.
const ASIDE: &str = ".removed";
/// Beside each, the name of its owner.
const OWNER: &str = "owner";

/// One retained workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// Unique: the sandbox's name, a dot, and which one it was.
    pub id: String,
    /// Who may have it back. `None`: somebody has to take it first.
    pub owner: Option<Owner>,
    pub since_ms: u64,
}

impl Retained {
    /// The sandbox that it was of.
    pub fn name(&self) -> &str {
        self.id.split('.').next().unwrap_or_default()
    }

    pub fn is_of(&self, owner: &Owner) -> bool {
        self.owner.as_ref() == Some(owner)
    }
}

pub(crate) fn dir(sandboxes: &Path) -> PathBuf {
    sandboxes.join(ASIDE)
}

pub(crate) fn make_dir(sandboxes: &Path) -> Result<PathBuf, SysError> {
    let aside = dir(sandboxes);
    own::claim_private(&aside)?;
    Ok(aside)
}

pub(crate) fn id_of(name: &SandboxName, uid: Uuid) -> String {
    format!("{name}.{uid}")
}

/// All that are retained, newest first.
pub fn list(sandboxes: &Path) -> Result<Vec<Retained>, SysError> {
    let aside = dir(sandboxes);
    let entries = match fs::read_dir(&aside) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(SysError::io("read", &aside, source)),
    };
    let mut found = BTreeMap::new();
    for entry in entries.flatten() {
        let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) else {
            continue;
        };
        let is_note = name.starts_with('.') || name.ends_with(&format!(".{OWNER}"));
        if !is_note {
            let since_ms = meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000;
            found.insert(volume::aside_name(&name).to_owned(), since_ms.unsigned_abs());
        }
    }
    let mut all: Vec<Retained> = found
        .into_iter()
        .map(|(id, since_ms)| Retained { owner: owner_of(&aside, &id), id, since_ms })
        .collect();
    // What has the same age by the clock of a file system has an order by its uid.
    all.sort_by(|one, other| (other.since_ms, &other.id).cmp(&(one.since_ms, &one.id)));
    Ok(all)
}

/// Those of one name, newest first.
pub fn of_name(sandboxes: &Path, name: &SandboxName) -> Result<Vec<Retained>, SysError> {
    let mut all = list(sandboxes)?;
    all.retain(|one| one.name() == name.as_str());
    Ok(all)
}

/// Has a retained workspace be another owner's.
pub fn give(sandboxes: &Path, id: &str, owner: &Owner) -> Result<(), SysError> {
    if !list(sandboxes)?.iter().any(|one| one.id == id) {
        let source = io::ErrorKind::NotFound.into();
        return Err(SysError { call: format!("find the retained workspace {id:?}"), source });
    }
    note(&dir(sandboxes), id, owner)
}

pub(crate) fn note(aside: &Path, id: &str, owner: &Owner) -> Result<(), SysError> {
    path::write_durably(&note_of(aside, id), owner.to_string().as_bytes())
}

/// Nobody's any more.
pub(crate) fn forget(aside: &Path, id: &str) {
    // One that stays expires like the rest.
    let _ = fs::remove_file(note_of(aside, id));
}

fn note_of(aside: &Path, id: &str) -> PathBuf {
    aside.join(format!("{id}.{OWNER}"))
}

fn owner_of(aside: &Path, id: &str) -> Option<Owner> {
    Owner::try_from(fs::read_to_string(note_of(aside, id)).ok()?).ok()
}
