//! What a scan means for the sandboxes. Pure: the scan and the store's snapshot go in, decisions
//! come out.
//!
//! - One owner per name. A file that names somebody else's sandbox is a conflict and touches nothing.
//! - A text with a fault changes nothing: the last good spec stays in force.
//! - A sandbox goes with its file only if its absence was seen twice, in the same directory as
//!   before, no more than a third go at once, and the store was not rebuilt since somebody last looked.
//!   Otherwise somebody has to confirm it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::time::Instant;

use crate::desired::parse::parse;
use crate::desired::scan::{Scan, Text};
use crate::store::files::{Declared, FileChanges, Moved, Owned};
use crate::store::{FileRecord, Snapshot};
use sodium_model::admission::{Admitted, Rules};
use sodium_model::event;
use sodium_model::{Hold, Owner, SandboxName, Span, Time, Violation, weight};
use sodium_sys::fault::{self, Bug};

/// An absence counts once it has lasted this long, over two scans at least.
pub const ABSENT_FOR: Span = Span::seconds(2);
/// Removing this many at once needs no confirmation, however few there are.
const PRUNE_FREELY: usize = 3;
/// Nor does removing this share of all.
const PRUNE_PERCENT: usize = 30;
/// What a look takes over weighs no more than this, as [`weight`] counts it: text that is small may stand for much. The
/// rest has its turn at the next one.
const DECLARED_BYTES_MAX: u64 = 64 << 20;
/// So much is told of one look; of more, only how much more.
const WARNING_COUNT_MAX: usize = 200;

/// Everything a merge depends on.
#[derive(Debug, Clone, Copy)]
pub struct Merge<'a> {
    pub scan: &'a Scan,
    /// Whether the scan saw everything; otherwise absence means nothing.
    pub complete: bool,
    pub snapshot: &'a Snapshot,
    pub rules: &'a Rules,
    pub now: Time,
}

/// What to do, and whether another look is due soon.
#[derive(Debug, Default)]
pub struct Merged {
    pub changes: FileChanges,
    /// Files to be read again at the next look even if nobody touches them.
    pub again: Vec<String>,
    pub look_again: bool,
    /// Files that are left for the next look, those that the scan has left among them.
    pub left: Vec<String>,
    /// Files that may be half written: nothing is known of what they say, either.
    unsettled: Vec<String>,
    /// Names that another file declares now.
    moved: HashSet<SandboxName>,
    /// Names that were missing in files that are left for the next look.
    left_missing: usize,
    /// What is not told.
    untold: usize,
}

impl Merged {
    fn warn(&mut self, about: Option<&SandboxName>, reason: &'static str, message: String) {
        if self.changes.warnings.len() < WARNING_COUNT_MAX {
            self.changes.warnings.push((about.cloned(), reason, message));
        } else {
            self.untold += 1;
        }
    }
}

/// Decides.
pub fn merge(input: &Merge<'_>) -> Merged {
    let mut merged = Merged::default();
    if !input.complete && input.snapshot.root.is_some_and(|root| root != input.scan.root) {
        // What is declared in another directory than the one last seen whole cannot be told from what is
        // missing in it: this one is to be seen whole first.
        merged.again = input.scan.read.keys().cloned().collect();
        merged.look_again = true;
        return merged;
    }
    let claims = Claims::new(read_files(input, &mut merged));
    merged.left.extend(input.scan.left.iter().cloned());
    merged.look_again |= !merged.left.is_empty();
    for (path, documents) in &claims.by_path {
        claim(input, &claims, path, documents, &mut merged);
    }
    if input.complete {
        let absent = absences(input, &mut merged);
        prune(input, absent, &mut merged);
    }
    if merged.untold > 0 {
        let message = format!("and {} more: `sodiumd get files` lists them", merged.untold);
        merged.changes.warnings.push((None, "Files", message));
    }
    merged
}

/// What the texts that were read declare.
struct Claims {
    by_path: BTreeMap<String, Vec<Admitted>>,
    /// Who declares each name; more than one is a quarrel.
    by_name: HashMap<SandboxName, Vec<String>>,
}

impl Claims {
    fn new(by_path: BTreeMap<String, Vec<Admitted>>) -> Self {
        let mut by_name: HashMap<SandboxName, Vec<String>> = HashMap::new();
        for (path, documents) in &by_path {
            for document in documents {
                by_name.entry(document.name.clone()).or_default().push(path.clone());
            }
        }
        Self { by_path, by_name }
    }
}

/// Parses what changed. Faults become records; good texts are returned.
fn read_files(input: &Merge<'_>, merged: &mut Merged) -> BTreeMap<String, Vec<Admitted>> {
    let (mut claims, mut bytes, mut judged) = (BTreeMap::new(), 0, 0);
    let until = input.scan.judged_until();
    let (read, from) = (&input.scan.read, input.scan.from.as_str());
    let after = (Included(from), Unbounded);
    let turns =
        read.range::<str, _>(after).chain(read.range::<str, _>((Unbounded, Excluded(from))));
    for (path, text) in turns {
        // One at least is judged at each.
        let is_over = judged > 0 && until.is_some_and(|until| Instant::now() >= until);
        if bytes > DECLARED_BYTES_MAX || is_over {
            merged.left.push(path.clone());
            merged.again.push(path.clone());
            continue;
        }
        let old = input.snapshot.files.get(path);
        let (digest, fresh, result) = match text {
            Text::Bytes { bytes, digest, fresh } => {
                // Conflicts are looked at anew: what stood in the way may be gone.
                let settled = old.is_some_and(|old| {
                    let clear = old.conflicts.is_empty() && old.missing.is_empty();
                    // By other rules a fault may be none.
                    old.digest == *digest && clear && old.faults.is_empty()
                });
                if settled {
                    continue;
                }
                judged += 1;
                (digest.clone(), *fresh, parse(bytes, input.rules))
            }
            Text::Unusable { reason } => {
                (String::new(), false, Err(vec![Violation::new("", reason.clone())]))
            }
        };
        match result {
            Ok(documents) => {
                let weights =
                    documents.iter().map(|one| weight::of_declared(&one.spec, &one.labels));
                bytes += weights.sum::<u64>();
                claims.insert(path.clone(), documents);
            }
            Err(_) if fresh && old.is_none_or(|old| old.digest != digest) => {
                // It may be half written still. Judged when it has settled.
                merged.unsettled.push(path.clone());
                merged.again.push(path.clone());
                merged.look_again = true;
            }
            Err(faults) => fault(input, path, digest, faults, merged),
        }
    }
    claims
}

fn fault(
    input: &Merge<'_>,
    path: &str,
    digest: String,
    faults: Vec<Violation>,
    merged: &mut Merged,
) {
    let old = input.snapshot.files.get(path).map(|old| FileRecord::clone(old)).unwrap_or_default();
    let message = format!("{path}: {}", list(&faults));
    // The names stay its own: their last good specs are in force. It is there, so nothing is missing.
    let missing = BTreeMap::new();
    let next = FileRecord {
        digest,
        faults,
        missing,
        held: None,
        confirmed_names: BTreeSet::new(),
        kept_names: BTreeSet::new(),
        ..old.clone()
    };
    if next.is_known_as(&old) {
        return;
    }
    let said = FileRecord { missing: old.missing.clone(), ..next.clone() };
    if !said.is_known_as(&FileRecord { held: None, confirmed_names: BTreeSet::new(), ..old }) {
        merged.warn(None, "InvalidFile", event::message(message));
    }
    merged.changes.records.insert(path.to_owned(), Some(next));
}

fn list(faults: &[Violation]) -> String {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Takes the names of a good file.
fn claim(
    input: &Merge<'_>,
    claims: &Claims,
    path: &str,
    documents: &[Admitted],
    merged: &mut Merged,
) {
    let old = input.snapshot.files.get(path).map(|old| FileRecord::clone(old)).unwrap_or_default();
    let digest = match &input.scan.read[path] {
        Text::Bytes { digest, .. } => digest.clone(),
        Text::Unusable { .. } => String::new(),
    };
    let mut record = FileRecord { digest, ..FileRecord::default() };
    let mut warnings = Vec::new();
    for document in documents {
        let name = &document.name;
        match standing(input, claims, path, name) {
            Standing::Ours { moved } => {
                if let Some(from) = moved {
                    merged.changes.moved.push(Moved { was: from, to: path.to_owned() });
                    merged.moved.insert(name.clone());
                }
                record.names.push(name.clone());
                merged.changes.declared.push(Declared {
                    name: name.clone(),
                    path: path.to_owned(),
                    labels: document.labels.clone(),
                    spec: document.spec.clone(),
                });
            }
            Standing::Conflict(why) => {
                // It names another file, as somebody named that.
                let why = event::message(why);
                if old.conflicts.get(name) != Some(&why) {
                    warnings.push((name, format!("{path} declares {name}, but {why}")));
                }
                // Read at every full scan: nothing in the file tells when the way is free.
                merged.again.push(path.to_owned());
                record.conflicts.insert(name.clone(), why);
            }
        }
    }
    // A name that the text no longer has is as absent as one whose file is gone.
    let kept: HashSet<SandboxName> = record.names.iter().cloned().collect();
    for name in old.names.iter().filter(|name| !kept.contains(*name)) {
        if owned_by(input, name, path) && !merged.moved.contains(name) {
            record.names.push(name.clone());
            let since = old.missing.get(name).copied().unwrap_or(input.now);
            record.missing.insert(name.clone(), since.min(input.now));
            record.held.clone_from(&old.held);
            record.confirmed_names.clone_from(&old.confirmed_names);
            record.kept_names.clone_from(&old.kept_names);
            merged.again.push(path.to_owned());
            merged.look_again = true;
        }
    }
    if !record.is_known_as(&old) {
        for (name, message) in warnings {
            merged.warn(Some(name), "Conflict", message);
        }
        merged.changes.records.insert(path.to_owned(), Some(record));
    }
}

enum Standing {
    /// The file may declare it; `moved` if the name was another file's that gave it up.
    Ours {
        moved: Option<Owned>,
    },
    Conflict(String),
}

fn standing(input: &Merge<'_>, claims: &Claims, path: &str, name: &SandboxName) -> Standing {
    let Some(sandbox) = input.snapshot.sandboxes.get(name) else {
        let rival = claims.by_name[name].iter().find(|other| *other != path);
        return match rival {
            Some(other) => Standing::Conflict(format!("{other} declares it too; neither is used")),
            None => Standing::Ours { moved: None },
        };
    };
    if sandbox.deletion.is_some() {
        return Standing::Conflict("the sandbox of that name is still being deleted".to_owned());
    }
    match &sandbox.owner {
        Owner::File(owner) if owner == path => Standing::Ours { moved: None },
        Owner::File(owner) if gave_up(input, claims, owner, name) => {
            Standing::Ours { moved: Some(Owned::of(sandbox, owner)) }
        }
        owner @ (Owner::Api | Owner::File(_)) => {
            Standing::Conflict(format!("it is owned by {owner}"))
        }
    }
}

/// Whether the file that owned a name no longer declares it: renamed, or the document was moved. What is known of a
/// file that was not read now may be older than that it owns the name.
fn gave_up(input: &Merge<'_>, claims: &Claims, owner: &str, name: &SandboxName) -> bool {
    if let Some(documents) = claims.by_path.get(owner) {
        return !documents.iter().any(|document| document.name == *name);
    }
    let is_without = input.snapshot.files.get(owner).is_some_and(|record| {
        // One that is there again with a fault in it keeps what it had.
        let is_missing = record.missing.contains_key(name) && !input.scan.read.contains_key(owner);
        let may_declare = record.conflicts.contains_key(name)
            || record.given_names.contains(name)
            || !record.faults.is_empty();
        is_missing || !record.names.contains(name) && !may_declare
    });
    let there = input.scan.present.binary_search_by(|present| present.as_str().cmp(owner)).is_ok();
    // A look at a few files cannot tell that another one is gone.
    is_without || (input.complete && !there)
}

fn owned_by(input: &Merge<'_>, name: &SandboxName, path: &str) -> bool {
    let owner = input.snapshot.sandboxes.get(name).map(|sandbox| &sandbox.owner);
    matches!(owner, Some(Owner::File(owner)) if owner == path)
}

/// Files that are gone, with the names they leave behind. Those without any are forgotten.
fn absences(input: &Merge<'_>, merged: &mut Merged) -> Vec<(String, FileRecord)> {
    let moved = std::mem::take(&mut merged.moved);
    let unknown = merged.left.iter().chain(&merged.unsettled).chain(&input.scan.unread);
    let unknown: HashSet<&str> = unknown.map(String::as_str).collect();
    let mut absent = Vec::new();
    for (path, old) in &input.snapshot.files {
        // What was missing in it may be in it again: it does not go, and counts among what would.
        if unknown.contains(path.as_str()) {
            merged.left_missing += old.missing.keys().filter(|name| !moved.contains(*name)).count();
            continue;
        }
        let there = input.scan.present.binary_search(path).is_ok();
        let changed = merged.changes.records.get(path);
        if there && changed.is_none() && old.missing.is_empty() {
            continue;
        }
        let mut record = match (there, changed) {
            (true, Some(Some(record))) => record.clone(),
            (true, _) => FileRecord::clone(old),
            (false, _) => {
                let mut record = FileRecord::clone(old);
                record.names.retain(|name| owned_by(input, name, path) && !moved.contains(name));
                record.missing.retain(|name, _| record.names.contains(name));
                for name in record.names.clone() {
                    // A clock that was set back must not put this off.
                    let since = record.missing.entry(name).or_insert(input.now);
                    *since = (*since).min(input.now);
                }
                if record.names.is_empty() {
                    merged.changes.records.insert(path.clone(), None);
                    continue;
                }
                record
            }
        };
        // What another file declares now is not missing, and nobody's to remove.
        let ours = |name: &SandboxName| owned_by(input, name, path) && !moved.contains(name);
        record.names.retain(|name| ours(name) || !record.missing.contains_key(name));
        record.missing.retain(|name, _| record.names.contains(name));
        if !record.missing.is_empty() {
            absent.push((path.clone(), record));
        }
    }
    absent
}

/// Lets those go that may, holds the others.
fn prune(input: &Merge<'_>, absent: Vec<(String, FileRecord)>, merged: &mut Merged) {
    let owned = input
        .snapshot
        .sandboxes
        .values()
        .filter(|sandbox| matches!(sandbox.owner, Owner::File(_)) && sandbox.deletion.is_none())
        .count();
    let names = || absent.iter().flat_map(|(_, record)| record.missing.keys());
    // What goes already, and what stays for an operator's word, is not what would go now.
    let goes = |record: &FileRecord, name: &SandboxName| {
        let is_going = input.snapshot.sandboxes.get(name).is_none_or(|one| one.deletion.is_some());
        let was_kept = record.kept_names.contains(name) && !record.confirmed_names.contains(name);
        !is_going && !was_kept && held_by_operator(input, name).is_none()
    };
    let going = absent
        .iter()
        .flat_map(|(_, record)| record.missing.keys().filter(move |name| goes(record, name)));
    let missing = going.count() + merged.left_missing;
    // Nor is a directory to be believed that was never seen whole.
    let replaced = input.snapshot.root != Some(input.scan.root);
    let replaced = replaced && !fault::has(Bug::EmptyMountBelieved);
    let held = if let Some(rescued) = &input.snapshot.rescued {
        Some(rescued.to_string())
    } else if missing > PRUNE_FREELY.max(owned * PRUNE_PERCENT / 100) {
        Some(format!("{missing} of {owned} sandboxes from files would go at once"))
    } else if replaced && missing > 0 {
        Some("the directory is another one than before".to_owned())
    } else {
        None
    };
    let all_confirmed = |record: &FileRecord| {
        record.missing.keys().all(|name| record.confirmed_names.contains(name))
    };
    let is_whole =
        names().next().is_none() || absent.iter().all(|(_, record)| all_confirmed(record));
    let all_read =
        merged.left.is_empty() && merged.unsettled.is_empty() && input.scan.unread.is_empty();
    if all_read && is_whole {
        // Everything known is there, or its absence was confirmed: this directory is to be believed.
        merged.changes.root =
            (input.snapshot.root != Some(input.scan.root)).then_some(input.scan.root);
    }
    for (path, mut record) in absent {
        prune_file(input, (&path, &mut record), held.as_ref(), merged);
        let there = input.scan.present.binary_search(&path).is_ok();
        let next = (there || !record.names.is_empty()).then_some(record);
        if input.snapshot.files.get(&path).map(|old| &**old) != next.as_ref() {
            merged.changes.records.insert(path, next);
        } else {
            merged.changes.records.remove(&path);
        }
    }
}

/// Lets those names of a file go that have been missing for long enough and are not held.
fn prune_file(
    input: &Merge<'_>,
    (path, record): (&str, &mut FileRecord),
    held: Option<&String>,
    merged: &mut Merged,
) {
    let is_due = |since: &Time| since.until(input.now) >= ABSENT_FOR;
    let (mut gone, mut kept) = (BTreeSet::new(), Vec::new());
    for (name, since) in &record.missing {
        let by_operator = held_by_operator(input, name);
        record.kept_names.extend(by_operator.map(|_| name.clone()));
        // What was told to wait for a word goes with none, whatever became of the reason.
        let kept_before =
            record.kept_names.contains(name).then_some("an operator had put it to rest");
        let why = held.map(String::as_str).or(by_operator).or(kept_before);
        match why.filter(|_| !record.confirmed_names.contains(name)) {
            Some(why) => kept.push((name.clone(), why, is_due(since))),
            None if is_due(since) => drop(gone.insert(name.clone())),
            None => merged.look_again = true,
        }
    }
    record.names.retain(|name| !gone.contains(name));
    record.missing.retain(|name, _| !gone.contains(name));
    record.confirmed_names.retain(|name| record.missing.contains_key(name));
    record.kept_names.retain(|name| record.missing.contains_key(name));
    merged.changes.pruned.extend(gone.iter().filter_map(|name| {
        let sandbox = input.snapshot.sandboxes.get(name)?;
        Some(Owned::of(sandbox, path))
    }));
    let Some((_, why, _)) = kept.first() else {
        record.held = None;
        return;
    };
    let why = (*why).to_owned();
    if kept.iter().any(|(_, _, is_due)| *is_due) {
        let known = input.snapshot.files.get(path);
        let is_new = |name| known.is_none_or(|known| !known.missing.contains_key(name));
        // Once more for each that joins them: what is confirmed is what was told.
        if record.held.is_none() || kept.iter().any(|(name, _, _)| is_new(name)) {
            let names: Vec<&str> = kept.iter().map(|(name, _, _)| name.as_str()).collect();
            let message = format!("{path} is gone; {} kept: {why}", names.join(", "));
            merged.warn(None, "PruneHeld", event::message(message));
            record.held = Some(why);
        }
    } else if record.held.is_none() {
        merged.look_again = true;
    }
}

/// An operator's word is above every source's: what is to stay stopped does not go, and come back as if nothing had
/// been said, because a file did.
fn held_by_operator(input: &Merge<'_>, name: &SandboxName) -> Option<&'static str> {
    let power = input.snapshot.sandboxes.get(name)?.power;
    match power.hold {
        Some(Hold::Stopped | Hold::Killed) => Some("an operator has stopped it"),
        Some(Hold::Started) | None => power.paused.then_some("an operator has paused it"),
    }
}

#[cfg(test)]
mod tests;
