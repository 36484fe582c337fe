//! Putting a store together again: from what can still be read of a damaged one, and from what is noted
//! beside everything that runs.
//!
//! The damaged one is kept. What comes back is never older than what either source knows, but it may be
//! less than there was; so nothing is removed for being absent until somebody confirms it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, Row};
use uuid::Uuid;

use crate::store::backup::{self, BackupError};
use crate::store::snapshot::Rescued;
use crate::store::{Cursor, FileRecord, Snapshot, rows, schema};
use sodium_model::{Instance, Owner, Record, Sandbox, SandboxName, Time};

/// The numbers of instances go on this much later: how many there were is not known, and none is used again.
const INSTANCES_AHEAD: u64 = 1_000;
/// More rows in a row that cannot be read are the end of the table.
const UNREADABLE_MAX: u32 = 20_000;

/// Puts a new store in the place of `database`, and says how.
pub(super) fn rescue(
    database: &Path,
    records: Vec<Record>,
    why: String,
    now: Time,
) -> Result<Rescued, BackupError> {
    let damaged = Remains::read(database);
    let (sandboxes, found) = merge(damaged.sandboxes, damaged.instances, records);
    let aside = database.exists().then(|| backup::free_name(database, "damaged"));
    let rescued = Rescued {
        at: now,
        aside: aside.map(|path| path.to_string_lossy().into_owned()),
        why,
        read: sandboxes.len() - found,
        found,
    };
    let files = files_of(damaged.files, sandboxes.values());
    let rv = sandboxes.values().map(|sandbox| sandbox.rv).max().unwrap_or(0);
    let snapshot = Snapshot {
        // Another history: watchers list again.
        epoch: rows::new_epoch().into(),
        rv,
        sandboxes: sandboxes.into_iter().map(|(name, one)| (name, Arc::new(one))).collect(),
        names: Default::default(),
        files: files.into_iter().map(|(path, record)| (path, Arc::new(record))).collect(),
        conflicts: Default::default(),
        events: Default::default(),
        root: None,
        drained: damaged.drained,
        rescued: Some(Arc::new(rescued.clone())),
        declared: Default::default(),
        held: Default::default(),
        spec_bytes: 0,
        said_bytes: 0,
        ids: damaged.ids,
    };
    // Daemons count by ones, so the time in milliseconds is ahead of any that shims obey.
    write_anew(database, &snapshot, damaged.epoch.max(now.0), "damaged")?;
    Ok(rescued)
}

/// Writes all of a snapshot into a new database, in place of the one that is there.
pub(super) fn write_anew(
    database: &Path,
    snapshot: &Snapshot,
    epoch: u64,
    ending: &str,
) -> Result<(), BackupError> {
    let half = backup::prepare(database)?;
    let failed = |op| backup::sqlite(op, &half);
    let fresh = schema::create(&half).map_err(failed("make"))?;
    let write = || -> rusqlite::Result<()> {
        fresh.execute_batch("BEGIN IMMEDIATE")?;
        rows::put_all(&fresh, snapshot)?;
        rows::set_meta(&fresh, rows::DAEMON_EPOCH, &epoch.to_string())?;
        fresh.execute_batch("COMMIT")?;
        backup::fold(&fresh)
    };
    write().map_err(failed("write"))?;
    drop(fresh);
    backup::put_in_place(&half, database, ending).map(drop)
}

/// What can be read of a damaged database.
#[derive(Debug, Default)]
struct Remains {
    sandboxes: Vec<Sandbox>,
    /// The newest of each sandbox.
    instances: BTreeMap<Uuid, Instance>,
    files: BTreeMap<String, FileRecord>,
    epoch: u64,
    drained: bool,
    ids: Cursor,
}

impl Remains {
    fn read(database: &Path) -> Self {
        // Nothing of the evidence is changed, not even by moving its log.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let Ok(damaged) = Connection::open_with_flags(database, flags) else {
            return Self::default();
        };
        let epoch = backup::epoch_of(&damaged).unwrap_or(0);
        let drained = matches!(rows::meta(&damaged, rows::DRAINED), Ok(Some(_)));
        let ids = rows::meta(&damaged, rows::IDS).ok().flatten();
        let ids = ids.and_then(|text| rows::parse(&text).ok()).unwrap_or_default();
        let mut remains = Self { epoch, drained, ids, ..Self::default() };
        read_rows(&damaged, "sandboxes", rows::SANDBOX, |row| {
            remains.sandboxes.extend(rows::sandbox(row)?.ok());
            Ok(())
        });
        read_rows(&damaged, "instances", "uid, doc", |row| {
            let (uid, doc): (String, String) = (row.get(0)?, row.get(1)?);
            if let (Ok(uid), Ok(instance)) = (Uuid::try_parse(&uid), rows::parse::<Instance>(&doc))
                && remains.instances.get(&uid).is_none_or(|other| other.n < instance.n)
            {
                remains.instances.insert(uid, instance);
            }
            Ok(())
        });
        read_rows(&damaged, "files", "path, doc", |row| {
            let (path, doc): (String, String) = (row.get(0)?, row.get(1)?);
            if let Ok(record) = rows::parse(&doc) {
                remains.files.insert(path, record);
            }
            Ok(())
        });
        remains
    }
}

/// Reads the rows of a table in their order on disk, and goes on behind those that cannot be read.
fn read_rows(
    damaged: &Connection,
    table: &str,
    columns: &str,
    mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) {
    let sql = format!(
        "SELECT {columns}, rowid FROM {table} NOT INDEXED WHERE rowid >= ?1 ORDER BY rowid"
    );
    let Ok(mut select) = damaged.prepare(&sql) else { return };
    let (mut from, mut unreadable) = (i64::MIN, 0);
    while unreadable < UNREADABLE_MAX {
        let mut last = None;
        let mut read = || -> rusqlite::Result<()> {
            let mut rows = select.query([from])?;
            while let Some(row) = rows.next()? {
                last = Some(row.get::<_, i64>("rowid")?);
                // One row that is not what it should be is no reason to leave out the next.
                let _ = each(row);
            }
            Ok(())
        };
        if read().is_ok() {
            return;
        }
        unreadable = if last.is_some() { 0 } else { unreadable + 1 };
        from = last.unwrap_or_else(|| from.max(0)).saturating_add(1);
    }
}

/// What each source knows best: the row with the newest edit, the instance with the highest number. Also
/// how many are known from records alone.
fn merge(
    rows: Vec<Sandbox>,
    mut instances: BTreeMap<Uuid, Instance>,
    records: Vec<Record>,
) -> (BTreeMap<SandboxName, Sandbox>, usize) {
    let mut by_uid: BTreeMap<Uuid, Sandbox> =
        rows.into_iter().map(|sandbox| (sandbox.uid, sandbox)).collect();
    for (uid, sandbox) in &mut by_uid {
        sandbox.instance = instances.remove(uid).map(Arc::new);
    }
    let read: Vec<Uuid> = by_uid.keys().copied().collect();
    for record in records {
        let running = record.into_sandbox();
        let Some(row) = by_uid.get_mut(&running.uid) else {
            by_uid.insert(running.uid, running);
            continue;
        };
        let number = |one: &Sandbox| one.instance.as_ref().map_or(0, |instance| instance.n);
        if number(&running) > number(row) {
            row.instance.clone_from(&running.instance);
        }
        if running.generation > row.generation {
            (row.generation, row.spec) = (running.generation, running.spec);
        }
        row.history.instances = row.history.instances.max(running.history.instances);
    }
    let (mut named, mut host_uids) = (BTreeMap::<SandboxName, Sandbox>::new(), Vec::new());
    for mut sandbox in by_uid.into_values() {
        sandbox.history.instances += INSTANCES_AHEAD;
        // Two incarnations of a name, or two with one user: the younger is the one that was in force.
        let older = named.get(&sandbox.name).is_some_and(|one| one.created_at > sandbox.created_at);
        if !older && !host_uids.contains(&sandbox.host_uid) {
            host_uids.push(sandbox.host_uid);
            named.insert(sandbox.name.clone(), sandbox);
        }
    }
    let found = named.values().filter(|one| !read.contains(&one.uid)).count();
    (named, found)
}

/// What is known of the files: each is read again, and what it owns and no longer declares is missed.
fn files_of<'s>(
    mut files: BTreeMap<String, FileRecord>,
    sandboxes: impl Iterator<Item = &'s Sandbox>,
) -> BTreeMap<String, FileRecord> {
    for record in files.values_mut() {
        record.digest.clear();
        record.held = None;
        record.confirmed_names.clear();
        record.kept_names.clear();
    }
    for sandbox in sandboxes {
        let Owner::File(path) = &sandbox.owner else { continue };
        let record = files.entry(path.clone()).or_default();
        if !record.names.contains(&sandbox.name) {
            record.names.push(sandbox.name.clone());
        }
    }
    files
}
