//! Exclusive locks on files: how one process proves to another that it lives.
//!
//! `flock` belongs to the open file description, so it is released by the kernel when the last
//! holder is gone, however it died. The descriptor is close-on-exec: a child must not inherit it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::SysError;

/// Held until the last descriptor of it is closed, in whatever process. Nothing unlocks it before,
/// or handing it to a child would leave the child without.
#[derive(Debug)]
pub struct Lock(File);

/// Takes the lock on `path`, making the file if need be. `None`: somebody else holds it.
pub fn try_take(path: &Path) -> Result<Option<Lock>, SysError> {
    take(open(path)?, path)
}

/// Makes a lock that was handed to this process its own. `None`: `fd` is not the file at `path`,
/// or somebody else holds it.
///
/// A lock that is handed to a child at its birth leaves no moment in which the child lives and
/// nobody can tell.
pub fn inherit(fd: OwnedFd, path: &Path) -> Result<Option<Lock>, SysError> {
    let file = File::from(fd);
    let same = match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => ours.dev() == theirs.dev() && ours.ino() == theirs.ino(),
        _ => false,
    };
    if same { take(file, path) } else { Ok(None) }
}

fn take(file: File, path: &Path) -> Result<Option<Lock>, SysError> {
    if !flock(&file, libc::LOCK_EX | libc::LOCK_NB, path)? {
        return Ok(None);
    }
    // Who holds it, for people and for finding a shim that does not answer.
    let noted = file.set_len(0).and_then(|()| (&file).rewind());
    let _ = noted.and_then(|()| writeln!(&file, "{}", std::process::id()));
    Ok(Some(Lock(file)))
}

/// Turns a lock into a descriptor to hand to a child. The lock lasts while either has it open; until the
/// child makes it its own, nobody is noted as its holder.
pub fn hand_over(lock: Lock) -> OwnedFd {
    let _ = lock.0.set_len(0);
    lock.0.into()
}

/// Whether anybody who took the lock has ever noted that.
pub fn is_noted(path: &Path) -> Result<bool, SysError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.len() > 0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SysError::io("look at", path, source)),
    }
}

/// Whether somebody holds the lock on `path`. A file that is not there is held by nobody.
pub fn is_held(path: &Path) -> Result<bool, SysError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(SysError::io("open", path, source)),
    };
    // Shared: two that look at once must not see each other.
    flock(&file, libc::LOCK_SH | libc::LOCK_NB, path).map(|free| !free)
}

/// False: somebody else has it.
fn flock(file: &File, operation: i32, path: &Path) -> Result<bool, SysError> {
    // SAFETY: flock takes two integers; the descriptor is open for the call's duration.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
        return Ok(true);
    }
    let error = SysError::last(format!("flock({})", path.display()));
    if error.errno() == libc::EWOULDBLOCK { Ok(false) } else { Err(error) }
}

/// The pid noted by the holder, for messages.
pub fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() || text.trim().is_empty() {
        "unknown".to_owned()
    } else {
        text.trim().to_owned()
    }
}

fn open(path: &Path) -> Result<File, SysError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|source| SysError::io("open", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let lock = try_take(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(try_take(&path).unwrap().is_none());
        assert_eq!(holder(&path), std::process::id().to_string());
        drop(lock);
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn a_lock_that_was_handed_over_has_been_held_all_the_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let fd = hand_over(try_take(&path).unwrap().unwrap());
        assert!(is_held(&path).unwrap() && !is_noted(&path).unwrap());
        let copy = fd.try_clone().unwrap();
        drop(fd);
        assert!(is_held(&path).unwrap());
        let heir = inherit(copy, &path).unwrap().unwrap();
        assert!(is_held(&path).unwrap() && is_noted(&path).unwrap());
        drop(heir);
        assert!(!is_held(&path).unwrap());
    }
}
