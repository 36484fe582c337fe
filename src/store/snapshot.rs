//! Everything as of one commit: immutable, shared, and cheap to replace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::ids::Cursor;
use sodium_model::{Event, Promised, Sandbox, SandboxName, Time, Violation, weight};

/// One commit.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Identifies this database; a new one never continues the numbers of another.
    pub epoch: Arc<str>,
    /// The number of the last transaction.
    pub rv: u64,
    pub sandboxes: OrdMap<SandboxName, Arc<Sandbox>>,
    pub names: OrdMap<Uuid, SandboxName>,
    pub files: OrdMap<String, Arc<FileRecord>>,
    /// Names that files declare and do not have in force: which files. Few, if any.
    pub conflicts: OrdMap<SandboxName, OrdSet<String>>,
    /// The newest events, oldest first.
    pub events: Vector<Arc<Event>>,
    /// Which directory the files were last read from: device and inode.
    pub root: Option<(u64, u64)>,
    /// Whether nothing is to run on this host until somebody says otherwise.
    pub drained: bool,
    /// That it was put together anew after damage. Until somebody confirms it, nothing is removed for
    /// being absent from the files.
    pub rescued: Option<Arc<Rescued>>,
    /// What all that are declared are promised,
    pub declared: Promised,
    /// and all that run, or may.
    pub held: Promised,
    /// What the specs of all of them take of memory, by [`weight`].
    pub spec_bytes: u64,
    /// What is said of files that are not in force takes so much.
    pub said_bytes: usize,
    /// How far host uids have been given.
    pub ids: Cursor,
}

/// How a store came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescued {
    pub at: Time,
    /// Where the damaged one is kept; `None`: there was none at all.
    pub aside: Option<String>,
    /// What was the matter.
    pub why: String,
    /// Sandboxes that could still be read in the damaged one,
    pub read: usize,
    /// and those that are only known since they run.
    pub found: usize,
}

impl fmt::Display for Rescued {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, read, found, .. } = self;
        write!(out, "the store was rebuilt: {why}; {read} sandboxes were read from it, ")?;
        write!(out, "{found} were found running; ")?;
        if let Some(aside) = &self.aside {
            write!(out, "what was there is kept in {aside}; ")?;
        }
        out.write_str("nothing that is missing from the files is removed until `sodiumd confirm`")
    }
}

/// What is known of one file of specs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileRecord {
    /// SHA-256 of the text last looked at.
    pub digest: String,
    /// Faults of that text. While there are any, the sandboxes stay as they were.
    pub faults: Vec<Violation>,
    /// Sandboxes it names and does not own, and who does.
    pub conflicts: BTreeMap<SandboxName, String>,
    /// Sandboxes it owns.
    pub names: Vec<SandboxName>,
    /// Those of them that were missing, since when.
    pub missing: BTreeMap<SandboxName, Time>,
    /// Whether removing those waits for somebody to confirm, and why.
    pub held: Option<String>,
    /// Those of which somebody confirmed that they may go: what is missing later is asked about again.
    pub confirmed_names: BTreeSet<SandboxName>,
    /// Those that an operator had stopped when they were missed: they wait for a word, even if they are started again.
    pub kept_names: BTreeSet<SandboxName>,
    /// Those that it was given by a transfer, and was not read since.
    pub given_names: BTreeSet<SandboxName>,
}

impl Snapshot {
    /// Adds up what is promised, as a sandbox takes the place of what it was; `None`: there is none.
    pub(super) fn count(&mut self, old: Option<&Sandbox>, new: Option<&Sandbox>) {
        let declared = |one: &Sandbox| Promised::declared(&one.spec, one.wants_to_run());
        let sum = |promised: Promised, of: &dyn Fn(&Sandbox) -> Promised| {
            let [old, new] = [old, new].map(|one| one.map(of).unwrap_or_default());
            promised.without(old).and(new)
        };
        self.declared = sum(self.declared, &declared);
        self.held = sum(self.held, &Promised::held);
        let bytes = |one: Option<&Sandbox>| one.map_or(0, weight::of_sandbox);
        if !old.zip(new).is_some_and(|(old, new)| holds_the_same(old, new)) {
            self.spec_bytes = self.spec_bytes.saturating_sub(bytes(old)) + bytes(new);
        }
    }

    /// Takes over what is known of a file; `None` forgets it.
    pub(super) fn set_file(&mut self, path: &str, record: Option<FileRecord>) {
        let old = self.files.remove(path);
        for name in old.iter().flat_map(|old| old.conflicts.keys()) {
            if let Some(files) = self.conflicts.get_mut(name) {
                files.remove(path);
            }
            if self.conflicts.get(name).is_some_and(OrdSet::is_empty) {
                self.conflicts.remove(name);
            }
        }
        self.said_bytes -= old.map_or(0, |old| old.said_bytes());
        let Some(record) = record else { return };
        for name in record.conflicts.keys() {
            self.conflicts.entry(name.clone()).or_default().insert(path.to_owned());
        }
        self.said_bytes += record.said_bytes();
        self.files.insert(path.to_owned(), Arc::new(record));
    }

    /// By uid or by name, as the seed's clients and ours may write it. A uid comes first: a name is chosen, and could be
    /// chosen to be what somebody else's sandbox is asked for by.
    pub fn find(&self, id: &str) -> Option<&Arc<Sandbox>> {
        let uid = Uuid::try_parse(id).ok();
        let name = uid.and_then(|uid| self.names.get(&uid));
        name.and_then(|name| self.sandboxes.get(name)).or_else(|| self.sandboxes.get(id))
    }

    /// `EPOCH-N`.
    pub fn resource_version(&self) -> String {
        version(&self.epoch, self.rv)
    }
}

/// Whether nothing that weighs was replaced, as mostly nothing is.
fn holds_the_same(old: &Sandbox, new: &Sandbox) -> bool {
    fn same<T>(old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
        match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        }
    }
    let (before, after) = (&old.history, &new.history);
    Arc::ptr_eq(&old.spec, &new.spec)
        && old.labels == new.labels
        && same(old.instance.as_ref(), new.instance.as_ref())
        && same(before.asleep.as_ref(), after.asleep.as_ref())
        && same(before.saved.as_ref(), after.saved.as_ref())
        && before.edits.len() == after.edits.len()
        && before.edits.last() == after.edits.last()
}

/// So much is remembered of what is wrong with all files together; of the others, that something is.
pub const SAID_BYTES_MAX: usize = 16 << 20;
/// In the place of a fault of which there is no room to say more.
const NOT_SAID: &str = "so much is wrong with other files that no more is kept of this one: \
    `sodiumd check` says it";

impl FileRecord {
    /// What its faults and conflicts take.
    pub fn said_bytes(&self) -> usize {
        let faults = self.faults.iter().map(|fault| fault.path.len() + fault.message.len());
        let conflicts = self.conflicts.iter().map(|(name, why)| name.as_str().len() + why.len());
        faults.chain(conflicts).sum()
    }

    /// The same with no more said than that something is wrong.
    pub fn shortened(mut self) -> Self {
        if !self.faults.is_empty() {
            self.faults = vec![Violation::new("", NOT_SAID)];
        }
        let first = self.conflicts.into_keys().next();
        self.conflicts = first.into_iter().map(|name| (name, NOT_SAID.to_owned())).collect();
        self
    }

    /// Whether this is what is known already of the same file.
    pub fn is_known_as(&self, known: &Self) -> bool {
        self == known || self.clone().shortened() == *known
    }
}

/// `EPOCH-N`, opaque to clients.
pub fn version(epoch: &str, rv: u64) -> String {
    format!("{epoch}-{rv}")
}

/// The number in a resource version of this database.
pub fn number(epoch: &str, text: &str) -> Option<u64> {
    let (found, rv) = text.rsplit_once('-')?;
    (found == epoch).then(|| rv.parse().ok())?
}
