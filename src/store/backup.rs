//! A copy of the database, taken while a daemon uses it, and put back while none does.
//!
//! A copy may go to, or come from, a directory that others may write to; SQLite knows only paths. So it works
//! in the state directory alone, which is ours, and what goes in or out of there is copied by descriptor.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::store::{rows, schema};
use sodium_sys::SysError;
use sodium_sys::beneath::{Beneath, Links, ReadError};

/// A database that cannot be read may have been had by any number of daemons, but not by so many.
const EPOCHS_AHEAD: u64 = 1 << 32;

/// What is complete, and takes the place of the database at once.
const NEXT: &str = "next";
/// What is being made.
const HALF: &str = "half";
/// They hold what people put into the environment of their programs.
const MODE: u32 = 0o600;

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
    let target = Place::of(to)?;
    if target.has(&target.name)? {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let from = open_existing(database).map_err(sqlite("open", database))?;
    let own = Place::of(database)?;
    let half = own.dir.begin(MODE).map_err(failed("write", database))?;
    let path = half.path();
    from.busy_timeout(std::time::Duration::from_secs(30))
        .and_then(|()| from.execute("VACUUM INTO ?1", [path.to_string_lossy()]))
        .map_err(sqlite("copy the database to", &path))?;
    inspect(&path, to)?;
    let mut copy = target.dir.begin(MODE).map_err(failed("write", to))?;
    let written = copy.copy(half.file()).and_then(|()| copy.sync());
    written.map_err(failed("write", to))?;
    match copy.place(&target.name) {
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
            Err(BackupError::Exists(to.to_owned()))
        }
        placed => placed.and_then(|()| target.dir.sync()).map_err(failed("name", to)),
    }
}

/// Puts the copy `from` in the place of `database`, which is set aside; returns where. The caller holds
/// the lock of the state directory: no daemon runs.
///
/// Daemons after this count on from the highest epoch, so that shims take orders from them. Watchers learn
/// that it is another history. The directory of specs has to be seen whole before anything is removed.
pub fn restore(from: &Path, database: &Path) -> Result<Option<PathBuf>, BackupError> {
    let half = prepare(database)?;
    let own = Place::of(database)?;
    if let Err(error) = fetch(from, &own).and_then(|()| inspect(&half, from)) {
        // Nor does what was fetched stay, or what SQLite has made beside it.
        let _ = prepare(database);
        return Err(error);
    }
    let replaced = own
        .has(&own.name)?
        .then(|| open_existing(database).and_then(|old| epoch_of(&old)).unwrap_or(EPOCHS_AHEAD));
    renew(&half, replaced.unwrap_or(0)).map_err(sqlite("prepare", &half))?;
    if replaced.is_some() {
        // What is set aside is in one file, if it can be.
        let _ = open_existing(database).and_then(|old| fold(&old));
    }
    put_in_place(&half, database, "before-restore")
}

/// Copies a regular file to where the next database is made.
fn fetch(from: &Path, own: &Place) -> Result<(), BackupError> {
    let source = Place::of(from)?;
    let opened = source.dir.open_file(&source.name, Links::Within);
    let (file, _) = opened.map_err(unreadable("open", from))?;
    let half = own.beside(HALF);
    let path = own.path(&half);
    let mut copy = own.dir.begin(MODE).map_err(failed("copy to", &path))?;
    copy.copy(&file).and_then(|()| copy.replace(&half)).map_err(failed("copy to", &path))
}

/// Where a database is made that is going to take the place of another; nothing is there.
pub(super) fn prepare(database: &Path) -> Result<PathBuf, BackupError> {
    let place = Place::of(database)?;
    let half = place.beside(HALF);
    for name in with_logs(&half) {
        place.remove(&name)?;
    }
    Ok(place.path(&half))
}

/// Has a database that is in one file beside another, and that nobody has open, take its place. The other one
/// is kept; returns as what. Whenever this is cut short, [`go_on`] brings it to one end or the other.
pub(super) fn put_in_place(
    half: &Path,
    database: &Path,
    ending: &str,
) -> Result<Option<PathBuf>, BackupError> {
    let place = Place::of(database)?;
    let name = half.file_name().unwrap_or_default();
    place.dir.seal(name, MODE).map_err(unreadable("protect", half))?;
    let mut there = Vec::new();
    for (old, ending) in with_logs(&place.name).into_iter().zip(LOGS) {
        if place.has(&old)? {
            there.push((old, ending));
        }
    }
    let aside = (!there.is_empty()).then(|| free_name(database, ending));
    for (old, log) in &there {
        let Some(aside) = &aside else { break };
        let new = with_ending(aside.file_name().unwrap_or_default(), log);
        place.dir.link(old, &new).map_err(failed("set aside", &place.path(old)))?;
    }
    let next = place.beside(NEXT);
    place.dir.rename(name, &next).map_err(failed("name", &place.path(&next)))?;
    place.sync()?;
    place.remove(&place.name)?;
    go_on(database)?;
    Ok(aside)
}

/// Ends what [`put_in_place`] began: once the old database is removed, the next one is complete.
pub(super) fn go_on(database: &Path) -> Result<(), BackupError> {
    let place = match Place::of(database) {
        Err(BackupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        opened => opened?,
    };
    let next = place.beside(NEXT);
    if place.has(&place.name)? || !place.has(&next)? {
        return place.remove(&next);
    }
    // A log that stays would be taken for the other database's.
    for log in with_logs(&place.name).into_iter().skip(1) {
        place.remove(&log)?;
    }
    place.dir.rename(&next, &place.name).map_err(failed("put in place", database))?;
    place.sync()
}

/// Whether it is whole, ours, and not of a newer release. `shown` is what people know it as.
fn inspect(path: &Path, shown: &Path) -> Result<(), BackupError> {
    let look = || -> rusqlite::Result<(String, u32, bool)> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        let said = connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let ours = connection.table_exists(None, "sandboxes")?;
        Ok((said, version, ours))
    };
    let damaged = |message| BackupError::Damaged { path: shown.to_owned(), message };
    let (said, found, ours) = look().map_err(|error| damaged(error.to_string()))?;
    let known = schema::newest();
    if said != "ok" {
        Err(damaged(said))
    } else if found > known {
        Err(BackupError::Newer { path: shown.to_owned(), found, known })
    } else if ours {
        Ok(())
    } else {
        Err(BackupError::Foreign(shown.to_owned()))
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

/// A file by the directory that it is in, opened once, and its name there.
struct Place {
    dir: Beneath,
    name: OsString,
    at: PathBuf,
}

impl Place {
    fn of(path: &Path) -> Result<Self, BackupError> {
        let opened = Beneath::parent_of(path);
        let (dir, name) = opened.map_err(failed("open the directory of", path))?;
        Ok(Self { dir, name, at: path.to_owned() })
    }

    /// The name with an ending.
    fn beside(&self, ending: &str) -> OsString {
        with_ending(&self.name, &format!(".{ending}"))
    }

    fn path(&self, name: &OsStr) -> PathBuf {
        self.at.with_file_name(name)
    }

    /// Whether anything has this name, be it a link that leads to nothing.
    fn has(&self, name: &OsStr) -> Result<bool, BackupError> {
        let found = self.dir.lstat(name).map_err(failed("look at", &self.path(name)))?;
        Ok(found.is_some())
    }

    fn remove(&self, name: &OsStr) -> Result<(), BackupError> {
        self.dir.remove(name).map_err(failed("remove", &self.path(name)))
    }

    fn sync(&self) -> Result<(), BackupError> {
        self.dir.sync().map_err(failed("sync the directory of", &self.at))
    }
}

/// A database and what SQLite may keep beside it.
const LOGS: [&str; 3] = ["", "-shm", "-wal"];

fn with_logs(name: &OsStr) -> [OsString; 3] {
    LOGS.map(|ending| with_ending(name, ending))
}

fn with_ending(name: &OsStr, ending: &str) -> OsString {
    let mut longer = name.to_owned();
    longer.push(ending);
    longer
}

pub(super) fn free_name(database: &Path, ending: &str) -> PathBuf {
    let name = database.file_name().unwrap_or_default();
    let names =
        (1_u32..).map(|n| database.with_file_name(with_ending(name, &format!(".{ending}-{n}"))));
    names.into_iter().find(|path| !path.exists()).expect("one of four thousand million is free")
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(SysError) -> BackupError + use<> {
    let path = path.to_owned();
    move |error| BackupError::Io { op, path, source: error.source }
}

fn unreadable(op: &'static str, path: &Path) -> impl FnOnce(ReadError) -> BackupError + use<> {
    let path = path.to_owned();
    move |error| BackupError::Io { op, path, source: error.into_io() }
}

pub(super) fn sqlite(
    op: &'static str,
    path: &Path,
) -> impl FnOnce(rusqlite::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Sqlite { op, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::store::{Store, database_path};

    #[test]
    fn a_copy_goes_through_no_link_and_is_for_its_owner_alone() {
        let (state, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let database = database_path(state.path());
        let _store = Store::open(&database).unwrap();
        let outside = state.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        let copy = to.path().join("copy.db");
        symlink(&outside, to.path().join("copy.db.half")).unwrap();
        for planted in [outside.as_path(), Path::new("nowhere")] {
            symlink(planted, &copy).unwrap();
            assert!(matches!(backup(&database, &copy), Err(BackupError::Exists(_))));
            fs::remove_file(&copy).unwrap();
        }
        backup(&database, &copy).unwrap();
        let meta = fs::symlink_metadata(&copy).unwrap();
        assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
        inspect(&copy, &copy).unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"kept");
        let hidden = |dir: &Path| {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with('.')).count()
        };
        assert_eq!((hidden(state.path()), hidden(to.path())), (0, 0));
    }

    #[test]
    fn what_is_no_file_is_not_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let database = database_path(dir.path());
        let _store = Store::open(&database).unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        symlink("/dev/zero", dir.path().join("zero")).unwrap();
        let before = fs::read(&database).unwrap();
        for (name, want) in [("pipe", "is not a file"), ("zero", "is a symlink out of")] {
            let error = restore(&dir.path().join(name), &database).unwrap_err();
            assert!(sodium_sys::error::chain(&error).contains(want), "{error:?}");
        }
        assert_eq!(fs::read(&database).unwrap(), before);
    }
}
