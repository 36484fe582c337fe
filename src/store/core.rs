//! The writing side: one connection, and the snapshot that the open transaction would publish.
//!
//! Synchronous and alone in its thread. Every change goes to SQLite and to the working snapshot
//! together; a savepoint that fails takes both back.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use uuid::Uuid;

use crate::live::Live;
use crate::store::change::{Change, ChangeKind};
use crate::store::ids::{Ids, Remains};
use crate::store::rows::{self, Unreadable};
use crate::store::snapshot::{FileRecord, SAID_BYTES_MAX, Snapshot};
use crate::store::{StoreError, rescue, schema};
use sodium_model::event;
use sodium_model::{Event, IdRange, Iid, InstancePhase, Level, Sandbox, SandboxName, Time, Totals};

/// Events held in memory.
const EVENT_COUNT_MAX: usize = 1_000;

/// Where new sandboxes get their uids from.
pub type Uids = Box<dyn FnMut() -> Uuid + Send>;

struct Hidden(Uids);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("uids")
    }
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    connection: Connection,
    path: Arc<Path>,
    /// The file that was opened, to notice when another takes its place.
    inode: (u64, u64),
    epoch: u64,
    published: Arc<Snapshot>,
    working: Snapshot,
    changes: Vec<Change>,
    /// Whether the running job has changed anything.
    touched: bool,
    /// For whom the running job works.
    asker: Option<String>,
    host_uids: BTreeSet<u32>,
    /// What the names of instances begin with.
    digits: HashSet<u64>,
    ids: Ids,
    uids: Hidden,
    /// What may be promised in all.
    pub(super) totals: Arc<Live<Totals>>,
    /// As if the disk were full.
    pub(super) commit_fails: bool,
    /// Whether SQLite has found damage since this was last asked.
    damaged: Cell<bool>,
}

impl Core {
    /// Opens the database, notes that another daemon has it now, and loads everything.
    pub fn open(path: &Path, uids: Uids) -> Result<Self, StoreError> {
        let connection = schema::open(path)?;
        let failed = |op| {
            let path: Arc<Path> = path.into();
            move |source| StoreError::Sqlite { op, path, source: Arc::new(source) }
        };
        let corrupt =
            |(what, message): Unreadable| StoreError::Corrupt { path: path.into(), what, message };
        let meta = |key| rows::meta(&connection, key).map_err(failed("read"));
        let number =
            |key| meta(key).map(|text| text.and_then(|text| text.parse().ok()).unwrap_or(0));
        let epoch = number(rows::DAEMON_EPOCH)? + 1;
        let identity = meta(rows::STORE_EPOCH)?.unwrap_or_else(rows::new_epoch);
        let save =
            |key, value: &str| rows::set_meta(&connection, key, value).map_err(failed("write"));
        save(rows::DAEMON_EPOCH, &epoch.to_string())?;
        save(rows::STORE_EPOCH, &identity)?;
        let mut working = Snapshot {
            epoch: identity.into(),
            rv: number(rows::RV)?,
            sandboxes: Default::default(),
            names: Default::default(),
            files: Default::default(),
            conflicts: Default::default(),
            events: Default::default(),
            root: meta(rows::ROOT)?.and_then(|text| serde_json::from_slice(text.as_bytes()).ok()),
            drained: meta(rows::DRAINED)?.is_some(),
            rescued: meta(rows::RESCUED)?
                .and_then(|text| serde_json::from_slice(text.as_bytes()).ok()),
            declared: Default::default(),
            held: Default::default(),
            spec_bytes: 0,
            said_bytes: 0,
            ids: meta(rows::IDS)?.and_then(|text| rows::parse(&text).ok()).unwrap_or_default(),
        };
        let (mut host_uids, mut digits) = (BTreeSet::new(), HashSet::new());
        let sandboxes = rows::sandboxes(&connection).map_err(failed("load"))?.map_err(corrupt)?;
        for sandbox in sandboxes {
            host_uids.insert(sandbox.host_uid);
            digits.insert(Iid::digits_of(sandbox.uid));
            working.count(None, Some(&sandbox));
            working.names.insert(sandbox.uid, sandbox.name.clone());
            working.sandboxes.insert(sandbox.name.clone(), Arc::new(sandbox));
        }
        for (path, record) in rows::files(&connection).map_err(failed("load"))?.map_err(corrupt)? {
            working.set_file(&path, Some(record));
        }
        let events = rows::events(&connection, EVENT_COUNT_MAX).map_err(failed("load"))?;
        working.events.extend(events.into_iter().map(Arc::new));
        let inode = inode(path).ok_or_else(|| StoreError::Gone { path: path.into() })?;
        let published = Arc::new(working.clone());
        Ok(Self {
            connection,
            path: path.into(),
            inode,
            epoch,
            published,
            working,
            changes: Vec::new(),
            touched: false,
            asker: None,
            host_uids,
            digits,
            ids: Ids::new(IdRange::default(), Box::new(|_| BTreeSet::new())),
            uids: Hidden(uids),
            totals: Arc::default(),
            commit_fails: false,
            damaged: Cell::new(false),
        })
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was last committed.
    pub fn published(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    // The transaction.

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        if inode(&self.path) != Some(self.inode) {
            return Err(StoreError::Gone { path: Arc::clone(&self.path) });
        }
        self.ids.look_again();
        // Immediate: a read that turns into a write later would be refused without waiting.
        self.execute("begin", "BEGIN IMMEDIATE")
    }

    /// Commits; on failure everything since `begin` is as if it had never been.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        let rv = self.working.rv;
        let done = if std::mem::take(&mut self.commit_fails) {
            Err(StoreError::Full { path: Arc::clone(&self.path) })
        } else if rv == self.published.rv {
            self.execute("commit", "COMMIT")
        } else {
            rows::set_meta(&self.connection, rows::RV, &rv.to_string())
                .map_err(|error| self.failed("write", error))
                .and_then(|()| self.execute("commit", "COMMIT"))
        };
        if done.is_err() {
            self.roll_back();
            return done;
        }
        if rv != self.published.rv {
            self.published = Arc::new(self.working.clone());
        }
        Ok(())
    }

    pub(super) fn roll_back(&mut self) {
        // Fails when SQLite has rolled back by itself, which is just as well.
        let _ = self.connection.execute_batch("ROLLBACK");
        self.working = Snapshot::clone(&self.published);
        self.changes.clear();
        let all = self.working.sandboxes.values();
        (self.host_uids, self.digits) =
            all.map(|one| (one.host_uid, Iid::digits_of(one.uid))).unzip();
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Runs one job so that its failure is its own.
    pub(super) fn within_savepoint<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.execute("begin", "SAVEPOINT job")?;
        let (working, change_count) = (self.working.clone(), self.changes.len());
        self.working.rv += 1;
        self.touched = false;
        self.asker = None;
        let result = work(self);
        if result.is_err() {
            self.execute("roll back", "ROLLBACK TO job")?;
            self.working = working;
            self.changes.truncate(change_count);
        } else if !self.touched {
            self.working.rv = working.rv;
        }
        self.execute("commit", "RELEASE job")?;
        result
    }

    /// Whether the database is not what was written any more. What was committed is all in memory.
    pub(super) fn is_lost(&self) -> bool {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        // A directory that is away may come back, with the database in it.
        let removed = !there(&self.path) && self.path.parent().is_some_and(there);
        self.damaged.take() || removed
    }

    /// Writes everything that was committed into a new database and goes on with that.
    pub(super) fn write_anew(&mut self) -> Result<(), StoreError> {
        self.roll_back();
        // Until that has succeeded there is nothing to write to.
        self.damaged.set(true);
        let path = Arc::clone(&self.path);
        // Closed first: later, it would remove the logs of the new one by their names.
        let memory = Connection::open_in_memory().map_err(|error| self.failed("make", error))?;
        drop(std::mem::replace(&mut self.connection, memory));
        let lost = |source| StoreError::Lost { path: path.clone(), source: Arc::new(source) };
        rescue::write_anew(&path, &self.published, self.epoch, "damaged").map_err(lost)?;
        self.connection = schema::open(&path)?;
        self.inode =
            inode(&path).ok_or_else(|| StoreError::Gone { path: Arc::clone(&self.path) })?;
        self.damaged.set(false);
        Ok(())
    }

    // Reading and changing, inside a job.

    /// Everything as the open transaction has it.
    pub fn now(&self) -> &Snapshot {
        &self.working
    }

    pub fn get(&self, name: &str) -> Option<Arc<Sandbox>> {
        self.working.sandboxes.get(name).cloned()
    }

    /// Stores a sandbox, new or changed. One that is as it was changes nothing.
    pub fn put(&mut self, mut sandbox: Sandbox) -> Result<Arc<Sandbox>, StoreError> {
        let old = self.get(sandbox.name.as_str());
        if let Some(old) = &old {
            sandbox.rv = old.rv;
            if **old == sandbox {
                return Ok(Arc::clone(old));
            }
        }
        sandbox.rv = self.working.rv;
        self.touched = true;
        self.put_instance(old.as_deref(), &sandbox)?;
        rows::put_sandbox(&self.connection, &sandbox)
            .map_err(|error| self.failed("write", error))?;
        let sandbox = Arc::new(sandbox);
        self.host_uids.insert(sandbox.host_uid);
        self.digits.insert(Iid::digits_of(sandbox.uid));
        self.working.count(old.as_deref(), Some(&sandbox));
        self.working.names.insert(sandbox.uid, sandbox.name.clone());
        self.working.sandboxes.insert(sandbox.name.clone(), Arc::clone(&sandbox));
        let kind = if old.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.changes.push(Change { rv: sandbox.rv, kind, sandbox: Arc::clone(&sandbox) });
        Ok(sandbox)
    }

    fn put_instance(&self, old: Option<&Sandbox>, sandbox: &Sandbox) -> Result<(), StoreError> {
        let Some(instance) = &sandbox.instance else { return Ok(()) };
        if old.and_then(|old| old.instance.as_ref()) == Some(instance) {
            return Ok(());
        }
        let store = || {
            rows::put_instance(&self.connection, sandbox.uid, instance)?;
            if instance.phase == InstancePhase::Dead {
                rows::trim_instances(&self.connection, sandbox.uid, instance.n)?;
            }
            Ok(())
        };
        store().map_err(|error| self.failed("write", error))
    }

    /// Forgets a sandbox.
    pub fn remove(&mut self, name: &SandboxName) -> Result<(), StoreError> {
        let Some(sandbox) = self.working.sandboxes.remove(name) else { return Ok(()) };
        self.touched = true;
        rows::delete_sandbox(&self.connection, &sandbox)
            .map_err(|error| self.failed("write", error))?;
        self.working.count(Some(&sandbox), None);
        self.working.names.remove(&sandbox.uid);
        self.host_uids.remove(&sandbox.host_uid);
        self.digits.remove(&Iid::digits_of(sandbox.uid));
        self.changes.push(Change { rv: self.working.rv, kind: ChangeKind::Deleted, sandbox });
        Ok(())
    }

    /// Stores what is known of a file; `None` forgets it. Of more than there is room for, no more is said than that
    /// something is wrong.
    pub fn put_file(&mut self, path: &str, record: Option<FileRecord>) -> Result<(), StoreError> {
        let old = self.working.files.get(path).cloned();
        let others =
            self.working.said_bytes.saturating_sub(old.as_ref().map_or(0, |old| old.said_bytes()));
        let fits = |record: &FileRecord| others + record.said_bytes() <= SAID_BYTES_MAX;
        let record = record.map(|new| if fits(&new) { new } else { new.shortened() });
        if old.as_deref() == record.as_ref() {
            return Ok(());
        }
        self.touched = true;
        rows::put_file(&self.connection, path, record.as_ref())
            .map_err(|error| self.failed("write", error))?;
        self.working.set_file(path, record);
        Ok(())
    }

    /// Remembers which directory the files come from.
    pub fn set_root(&mut self, root: (u64, u64)) -> Result<(), StoreError> {
        if self.working.root != Some(root) {
            let text = serde_json::to_string(&root).expect("two numbers");
            rows::set_meta(&self.connection, rows::ROOT, &text)
                .map_err(|error| self.failed("write", error))?;
            self.working.root = Some(root);
            self.touched = true;
        }
        Ok(())
    }

    /// From now on nothing is to run on this host, or everything that is wanted. False: so it was.
    pub fn set_drained(&mut self, drained: bool, now: Time) -> Result<bool, StoreError> {
        if self.working.drained == drained {
            return Ok(false);
        }
        let (reason, message) = if drained {
            rows::set_meta(&self.connection, rows::DRAINED, "yes")
                .map_err(|error| self.failed("write", error))?;
            ("Drained", "every sandbox is stopped, and none is started until `sodiumd undrain`")
        } else {
            rows::delete_meta(&self.connection, rows::DRAINED)
                .map_err(|error| self.failed("write", error))?;
            ("Undrained", "sandboxes run again as they are declared")
        };
        self.working.drained = drained;
        self.event(None, Level::Normal, (reason, message.to_owned()), now)?;
        Ok(true)
    }

    /// Writes something, to see whether that can be done.
    pub fn probe(&mut self) -> Result<(), StoreError> {
        self.touched = true;
        let text = self.working.rv.to_string();
        rows::set_meta(&self.connection, rows::PROBE, &text)
            .map_err(|error| self.failed("write", error))
    }

    /// Somebody has seen how the store came back, and takes it as it is.
    pub fn confirm_rescue(&mut self) -> Result<bool, StoreError> {
        if self.working.rescued.take().is_none() {
            return Ok(false);
        }
        self.touched = true;
        rows::delete_meta(&self.connection, rows::RESCUED)
            .map_err(|error| self.failed("write", error))?;
        Ok(true)
    }

    /// The events of the running job say that this is who asked for it.
    pub fn act_for(&mut self, asker: String) {
        self.asker = Some(asker);
    }

    /// Notes that something happened.
    pub fn event(
        &mut self,
        about: Option<&SandboxName>,
        level: Level,
        (reason, message): (&str, String),
        time: Time,
    ) -> Result<(), StoreError> {
        self.touched = true;
        let (name, reason) = (about.cloned(), reason.to_owned());
        // Who asked is said, however long what is said of it is.
        let message = match &self.asker {
            Some(asker) => event::message_by(message, asker),
            None => event::message(message),
        };
        let event = Event { seq: self.working.rv, time, name, level, reason, message };
        rows::put_event(&self.connection, &event).map_err(|error| self.failed("write", error))?;
        self.working.events.push_back(Arc::new(event));
        while self.working.events.len() > EVENT_COUNT_MAX {
            self.working.events.pop_front();
        }
        Ok(())
    }

    /// One whose instances have names of their own.
    pub fn new_uid(&mut self) -> Uuid {
        loop {
            let uid = (self.uids.0)();
            if !self.has_twin(uid) {
                return uid;
            }
        }
    }

    /// Whether instances of a sandbox that is there would have the names of those of this one.
    pub fn has_twin(&self, uid: Uuid) -> bool {
        self.digits.contains(&Iid::digits_of(uid))
    }

    pub(super) fn give_ids(&mut self, range: IdRange, remains: Remains) {
        self.ids = Ids::new(range, remains);
    }

    /// A host uid that nobody has, and that no sandbox had for as long as there are others. Or how many there are,
    /// all in use.
    pub fn free_host_uid(&mut self) -> Result<Result<u32, usize>, StoreError> {
        let mut cursor = self.working.ids;
        let Some(id) = self.ids.next(&mut cursor, &self.host_uids) else {
            return Ok(Err(self.ids.count()));
        };
        rows::set_meta(&self.connection, rows::IDS, &rows::json(&cursor))
            .map_err(|error| self.failed("write", error))?;
        self.working.ids = cursor;
        Ok(Ok(id))
    }

    fn execute(&self, op: &'static str, sql: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(|error| self.failed(op, error))
    }

    fn failed(&self, op: &'static str, source: rusqlite::Error) -> StoreError {
        let path = Arc::clone(&self.path);
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full { path },
            Some(ErrorCode::ReadOnly) => StoreError::ReadOnly { path },
            Some(ErrorCode::SystemIoFailure) if is_read_only(&path) => {
                StoreError::ReadOnly { path }
            }
            Some(ErrorCode::SystemIoFailure) => StoreError::Io { path, source: Arc::new(source) },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                self.damaged.set(true);
                StoreError::Damaged { path, source: Arc::new(source) }
            }
            _ => StoreError::Sqlite { op, path, source: Arc::new(source) },
        }
    }
}

/// SQLite reports a file system that became read-only as a plain I/O error.
fn is_read_only(path: &Path) -> bool {
    let opened = fs::File::options().append(true).open(path);
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
