//! A copy of the database, taken while a daemon uses it, and put back while none does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::store::{rows, schema};

/// A database that cannot be read may have been had by any number of daemons, but not by so many.
const EPOCHS_AHEAD: u64 = 1 << 32;

/// What is complete, and takes the place of the database at once.
const NEXT: &str = "next";

/// Why there is no copy, or it was not put back. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already; name another file, or remove it", .0.display())]
    Exists(PathBuf),
    #[error("{} is damaged ({message}); use another copy", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("{} is no database of sodiumd", .0.display())]
    Foreign(PathBuf),
    #[error("{} has schema {found}, this release knows {known}; use the newer release", path.display())]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("{op} {}", path.display())]
    Sqlite {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{op} {}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Writes everything that is committed in `database` to the new file `to`.
pub fn backup(database: &Path, to: &Path) -> Result<(), BackupError> {
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let from = open_existing(database).map_err(sqlite("open", database))?;
    let half = beside(to, "half");
    remove(&half)?;
    // It holds what people put into the environment of their programs.
    let made = File::create(&half).and_then(|file| {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        Ok(file)
    });
    let file = made.map_err(failed("write", &half))?;
    let done = from
        .busy_timeout(std::time::Duration::from_secs(30))
        .and_then(|()| from.execute("VACUUM INTO ?1", [half.to_string_lossy()]))
        .map_err(sqlite("copy the database to", &half))
        .and_then(|_| inspect(&half))
        .and_then(|()| file.sync_all().map_err(failed("sync", &half)))
        .and_then(|()| fs::rename(&half, to).map_err(failed("name", to)));
    if done.is_err() {
        let _ = fs::remove_file(&half);
    }
    done.and_then(|()| sync_parent(to))
}

/// Puts the copy `from` in the place of `database`, which is set aside; returns where. The caller holds
/// the lock of the state directory: no daemon runs.
///
/// Daemons after this count on from the highest epoch, so that shims take orders from them. Watchers learn
/// that it is another history. The directory of specs has to be seen whole before anything is removed.
pub fn restore(from: &Path, database: &Path) -> Result<Option<PathBuf>, BackupError> {
    inspect(from)?;
    let replaced = database
        .exists()
        .then(|| open_existing(database).and_then(|old| epoch_of(&old)).unwrap_or(EPOCHS_AHEAD));
    let half = prepare(database)?;
    fs::copy(from, &half).map_err(failed("copy to", &half))?;
    renew(&half, replaced.unwrap_or(0)).map_err(sqlite("prepare", &half))?;
    if replaced.is_some() {
        // What is set aside is in one file, if it can be.
        let _ = open_existing(database).and_then(|old| fold(&old));
    }
    put_in_place(&half, database, "before-restore")
}

/// Where a database is made that is going to take the place of another; nothing is there.
pub(super) fn prepare(database: &Path) -> Result<PathBuf, BackupError> {
    let half = beside(database, "half");
    for path in with_logs(&half) {
        remove(&path)?;
    }
    Ok(half)
}

/// Has a database that is in one file, and that nobody has open, take the place of another, which is kept
/// beside it; returns as what. Whenever this is cut short, [`go_on`] brings it to one end or the other.
pub(super) fn put_in_place(
    half: &Path,
    database: &Path,
    ending: &str,
) -> Result<Option<PathBuf>, BackupError> {
    fs::set_permissions(half, fs::Permissions::from_mode(0o600))
        .map_err(failed("protect", half))?;
    File::open(half).and_then(|file| file.sync_all()).map_err(failed("sync", half))?;
    let there = with_logs(database).iter().any(|path| path.exists());
    let aside = there.then(|| free_name(database, ending));
    if let Some(aside) = &aside {
        for (old, new) in with_logs(database).into_iter().zip(with_logs(aside)) {
            if old.exists() {
                fs::hard_link(&old, &new).map_err(failed("set aside", &old))?;
            }
        }
    }
    let next = beside(database, NEXT);
    fs::rename(half, &next).map_err(failed("name", &next))?;
    sync_parent(database)?;
    remove(database)?;
    go_on(database)?;
    Ok(aside)
}

/// Ends what [`put_in_place`] began: once the old database is removed, the next one is complete.
pub(super) fn go_on(database: &Path) -> Result<(), BackupError> {
    let next = beside(database, NEXT);
    if database.exists() || !next.exists() {
        return remove(&next);
    }
    // A log that stays would be taken for the other database's.
    for log in with_logs(database).into_iter().skip(1) {
        remove(&log)?;
    }
    fs::rename(&next, database).map_err(failed("put in place", database))?;
    sync_parent(database)
}

/// Whether it is whole, ours, and not of a newer release.
fn inspect(path: &Path) -> Result<(), BackupError> {
    File::open(path).map_err(failed("open", path))?;
    let look = || -> rusqlite::Result<(String, u32, bool)> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let said = connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let ours = connection.table_exists(None, "sandboxes")?;
        Ok((said, version, ours))
    };
    let damaged = |message| BackupError::Damaged { path: path.to_owned(), message };
    let (said, found, ours) = look().map_err(|error| damaged(error.to_string()))?;
    let known = schema::newest();
    if said != "ok" {
        Err(damaged(said))
    } else if found > known {
        Err(BackupError::Newer { path: path.to_owned(), found, known })
    } else if ours {
        Ok(())
    } else {
        Err(BackupError::Foreign(path.to_owned()))
    }
}

/// Makes another history of a database, which counts on from `epoch` or from its own if that is higher.
fn renew(path: &Path, epoch: u64) -> rusqlite::Result<()> {
    let connection = open_existing(path)?;
    let epoch = epoch_of(&connection)?.max(epoch);
    rows::set_meta(&connection, rows::DAEMON_EPOCH, &epoch.to_string())?;
    for key in [rows::STORE_EPOCH, rows::ROOT] {
        rows::delete_meta(&connection, key)?;
    }
    fold(&connection)
}

/// Moves what is in the log into the database.
pub(super) fn fold(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "DELETE")
}

pub(super) fn epoch_of(connection: &Connection) -> rusqlite::Result<u64> {
    let text = rows::meta(connection, rows::DAEMON_EPOCH)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// A database and what SQLite may keep beside it.
fn with_logs(path: &Path) -> [PathBuf; 3] {
    ["", "-shm", "-wal"].map(|ending| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    })
}

pub(super) fn free_name(database: &Path, ending: &str) -> PathBuf {
    let names = (1_u32..).map(|n| beside(database, &format!("{ending}-{n}")));
    names.into_iter().find(|path| !path.exists()).expect("one of four thousand million is free")
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), BackupError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync", parent))
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io { op, path, source }
}

pub(super) fn sqlite(
    op: &'static str,
    path: &Path,
) -> impl FnOnce(rusqlite::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Sqlite { op, path, source }
}
