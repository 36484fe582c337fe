//! What must survive, in SQLite.
//!
//! One thread owns the connection and everyone else holds a [`Store`] and sends it work, so that
//! writes have one order. Jobs that wait together share one durable commit; each has a savepoint of
//! its own and fails alone. After COMMIT, and only then, an immutable [`Snapshot`] is published, from
//! which everyone reads, and the jobs are answered. Nothing that was answered can be lost.
//!
//! ```text
//!   jobs --> [savepoint job]* --> COMMIT (WAL, fsync) --> snapshot, ring --> answers
//! ```

pub mod backup;
pub mod change;
pub mod core;
pub mod edit;
pub mod files;
pub mod ids;
mod rescue;
mod rows;
mod schema;
pub mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use rusqlite::ErrorCode;
use tokio::sync::{oneshot, watch};
use tracing::error;
use uuid::Uuid;

use crate::live::Live;
use crate::store::backup::BackupError;
use sodium_model::{IdRange, Record, Time, Totals};
use sodium_sys::error::chain;
use sodium_sys::fault::{self, Bug};

pub use change::{Change, ChangeKind, Ring};
pub use core::{Core, Uids};
pub use ids::{Cursor, Remains};
pub use snapshot::{FileRecord, Rescued, Snapshot};

/// More waiting jobs than this means the disk is in trouble: say so, do not queue.
const QUEUE_LEN_MAX: usize = 1024;
/// Jobs that share one commit.
const BATCH_LEN_MAX: usize = 128;

/// Runs in the store's thread, within the transaction, or is told why there is none.
type Job = Box<dyn FnOnce(Result<&mut Core, StoreError>) -> Answer + Send>;
/// Called with how the commit went.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A handle; clone it freely.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: SyncSender<Job>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ring: Arc<Mutex<Ring>>,
    path: Arc<Path>,
    epoch: u64,
    fault: Arc<Mutex<Option<StoreError>>>,
    totals: Arc<Live<Totals>>,
}

/// Why a job has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The queue is full.
    #[error("the store is busy: {QUEUE_LEN_MAX} changes wait for the disk")]
    Busy,
    /// The thread is gone; only while shutting down.
    #[error("the store is closed")]
    Closed,
    /// No space for what was to be written. Nothing was changed.
    #[error("no space left for {}; free some space there and try again", path.display())]
    Full { path: Arc<Path> },
    /// The file system does not let us write. Nothing was changed.
    #[error("{} cannot be written; mount it writable and try again", path.display())]
    ReadOnly { path: Arc<Path> },
    /// The disk refused. Nothing was changed.
    #[error("the disk under {} fails; nothing was changed", path.display())]
    Io {
        path: Arc<Path>,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file is not what was written. It is written anew before the next change, from what is in memory.
    #[error("{} turned out to be damaged and is being rebuilt; nothing was changed, try again", path.display())]
    Damaged {
        path: Arc<Path>,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file was damaged or removed, and could not be written anew.
    #[error("{} is damaged and cannot be rebuilt", path.display())]
    Lost {
        path: Arc<Path>,
        #[source]
        source: Arc<BackupError>,
    },
    /// The file is no longer where it was opened, so that nothing written would be found again.
    #[error("{} was removed or replaced while in use; restart the daemon", path.display())]
    Gone { path: Arc<Path> },
    /// SQLite refused.
    #[error("{op} in {}", path.display())]
    Sqlite {
        op: &'static str,
        path: Arc<Path>,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A newer release has been here.
    #[error("{} has schema {found}, this release knows {known}; use the newer release", path.display())]
    Newer { path: Arc<Path>, found: u32, known: u32 },
    /// A row does not read back as what was written.
    #[error("{} holds a {what} that cannot be read: {message}", path.display())]
    Corrupt { path: Arc<Path>, what: &'static str, message: String },
}

impl StoreError {
    /// Whether what is on the disk is not what was written there.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
            Self::Corrupt { .. } | Self::Damaged { .. } => true,
            Self::Busy
            | Self::Closed
            | Self::Full { .. }
            | Self::ReadOnly { .. }
            | Self::Io { .. }
            | Self::Lost { .. }
            | Self::Gone { .. }
            | Self::Newer { .. } => false,
        }
    }
}

impl Store {
    /// Opens, migrates, loads, and starts the thread.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Box::new(Uuid::now_v7))
    }

    /// The same; a store that is damaged, or gone while sandboxes run, is put together again, from what can
    /// be read of it and from the records of what runs.
    pub fn open_or_rescue(
        path: &Path,
        records: impl FnOnce() -> Vec<Record>,
        now: Time,
    ) -> Result<Self, StoreError> {
        let rescued = |records, why| {
            let lost = |source| StoreError::Lost { path: path.into(), source: Arc::new(source) };
            rescue::rescue(path, records, why, now).map_err(lost)?;
            Self::open(path)
        };
        let interrupted = backup::go_on(path);
        interrupted
            .map_err(|source| StoreError::Lost { path: path.into(), source: Arc::new(source) })?;
        if std::fs::metadata(path).map_or(0, |meta| meta.len()) == 0 {
            let records = records();
            if records.is_empty() {
                return Self::open(path);
            }
            return rescued(records, format!("{} was not there", path.display()));
        }
        match Self::open(path) {
            Err(error) if error.is_damage() => rescued(records(), chain(&error)),
            opened => opened,
        }
    }

    /// The same, with another source of uids.
    pub fn open_with(path: &Path, uids: Uids) -> Result<Self, StoreError> {
        let mut core = Core::open(path, uids)?;
        let (epoch, totals) = (core.epoch(), Arc::clone(&core.totals));
        let (publish, snapshots) = watch::channel(core.published());
        let ring = Arc::new(Mutex::new(Ring::new(core.published().rv)));
        let (jobs, inbox) = sync_channel(QUEUE_LEN_MAX);
        let fault = Arc::default();
        let (their_ring, their_fault) = (Arc::clone(&ring), Arc::clone(&fault));
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(&mut core, &inbox, (&publish, &their_ring, &their_fault)))
            .expect("a thread can be started at start-up");
        Ok(Self { jobs, snapshots, ring, path: path.into(), epoch, fault, totals })
    }

    /// From now on no more than this may be promised to all sandboxes together.
    pub fn bound(&self, totals: Totals) {
        self.totals.set(totals);
    }

    /// From now on new sandboxes get host uids of this range, none of which anything `remains` of.
    pub fn give_ids(&self, range: IdRange, remains: Remains) -> Result<(), StoreError> {
        self.write_blocking(move |core| {
            core.give_ids(range, remains);
            Ok(())
        })
    }

    /// Everything as of the last commit.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Wakes whenever a commit is published.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The last changes, for watchers.
    pub fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("nobody panics while holding the ring")
    }

    /// Why the last change was not written, if it was not.
    pub fn fault(&self) -> Option<StoreError> {
        self.fault.lock().expect("nobody panics while holding the fault").clone()
    }

    /// How many daemons have had this store. Shims refuse all but the newest.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does `work` in a transaction and waits until it is durable.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.submit(work, move |result| drop(reply.send(result)))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The same, for threads that may block.
    pub fn write_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _ = fault::reach("before a transaction");
        let (reply, answer) = sync_channel(1);
        self.submit(work, move |result| drop(reply.send(result)))?;
        let done = answer.recv().map_err(|_| StoreError::Closed)?;
        let _ = fault::reach("after a transaction");
        done
    }

    fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T, StoreError> + Send + 'static,
        reply: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        let (fails, hasty) = (fault::reach("commit"), fault::has(Bug::AnswerBeforeCommit));
        let job: Job = Box::new(move |core| {
            let done = core.and_then(|core| {
                core.commit_fails |= fails;
                core.within_savepoint(work)
            });
            if hasty {
                reply(done);
                return Box::new(|_| ());
            }
            Box::new(move |committed| reply(committed.and(done)))
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }
}

/// Where the database lies in a state directory.
pub fn database_path(state: &Path) -> PathBuf {
    state.join("sodiumd.db")
}

fn serve(
    core: &mut Core,
    inbox: &Receiver<Job>,
    (publish, ring, fault): (
        &watch::Sender<Arc<Snapshot>>,
        &Mutex<Ring>,
        &Mutex<Option<StoreError>>,
    ),
) {
    while let Ok(first) = inbox.recv() {
        let mut answers: Vec<Answer> = Vec::new();
        let result = match begin(core) {
            Ok(()) => {
                answers.push(first(Ok(core)));
                while answers.len() < BATCH_LEN_MAX
                    && let Ok(job) = inbox.try_recv()
                {
                    answers.push(job(Ok(core)));
                }
                core.commit()
            }
            Err(error) => {
                answers.push(first(Err(error.clone())));
                Err(error)
            }
        };
        let rv = publish.borrow().rv;
        if result.is_ok() {
            let changes = core.take_changes();
            if !changes.is_empty() {
                ring.lock().expect("nobody panics while holding the ring").extend(changes);
            }
            publish.send_replace(core.published());
        }
        // What wrote nothing says nothing about the disk.
        if result.is_err() || publish.borrow().rv != rv {
            *fault.lock().expect("nobody panics while holding the fault") = result.clone().err();
        }
        for answer in answers {
            answer(result.clone());
        }
    }
}

/// Begins a transaction. If the database turned out to be lost, it is written anew before, from what is
/// in memory, which is all of it.
fn begin(core: &mut Core) -> Result<(), StoreError> {
    if core.is_lost() {
        error!(path = %core.path().display(), "database missing or damaged; rebuilding it from memory");
        core.write_anew()?;
    }
    core.begin()
}

#[cfg(test)]
mod tests;
