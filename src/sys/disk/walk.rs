//! Walks whole trees of somebody else's files, however deep: one directory is open at a time, no path is longer
//! than a name, and no symlink is followed.
//!
//! A way back up leads to where the way down began, or the walk ends with an error.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::quota;
use crate::sys::SysError;

/// A name in a directory that is open, and what it is the name of.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    dir: &'a OwnedFd,
    name: &'a CStr,
    about: &'a FileStat,
}

impl Entry<'_> {
    fn is(&self, kind: SFlag) -> bool {
        is(self.about, kind)
    }

    fn open(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(self.dir, self.name, flags, Mode::empty())
    }
}

/// Where a walk has been: the directory's identity, and what of it is still to be entered.
struct Level {
    identity: (u64, u64),
    name: CString,
    below: Vec<CString>,
}

/// Removes whatever is at `path`. What vanishes meanwhile need not be removed.
pub fn remove(path: &Path) -> Result<(), SysError> {
    let failed = |errno| SysError::nix(format!("remove {}", path.display()), errno);
    let here = nix::fcntl::AT_FDCWD;
    match top(path) {
        Ok(top) => {
            empty(top).map_err(failed)?;
            gone(unlinkat(here, path, UnlinkatFlags::RemoveDir)).map_err(failed)
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            gone(unlinkat(here, path, UnlinkatFlags::NoRemoveDir)).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// Removes what is in the directory `path`.
pub fn clear(path: &Path) -> Result<(), SysError> {
    let cleared = top(path).and_then(empty);
    cleared.map_err(|errno| SysError::nix(format!("clear {}", path.display()), errno))
}

fn empty(top: OwnedFd) -> nix::Result<()> {
    let file = |entry: Entry<'_>| match entry.is(SFlag::S_IFDIR) {
        true => Ok(()),
        false => gone(unlinkat(entry.dir, entry.name, UnlinkatFlags::NoRemoveDir)),
    };
    let dir = |at: &OwnedFd, name: &CStr| gone(unlinkat(at, name, UnlinkatFlags::RemoveDir));
    walk(top, &file, &dir)
}

fn gone(removed: nix::Result<()>) -> nix::Result<()> {
    match removed {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Gives a tree to another owner, symlinks themselves included.
pub fn give(path: &Path, uid: u32, gid: u32) -> Result<(), SysError> {
    crate::sys::path::give(path, uid, gid)?;
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let give =
        |entry: Entry<'_>| fchownat(entry.dir, entry.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
    let walked = top(path).and_then(|top| walk(top, &give, &|_, _| Ok(())));
    walked.map_err(|errno| SysError::nix(format!("chown below {}", path.display()), errno))
}

/// Puts a tree into a project of quotas. What cannot be opened, like a pipe, takes no room.
pub fn set_project(path: &Path, project: u32) -> Result<(), SysError> {
    quota::set_project(path, project)?;
    let set = |entry: Entry<'_>| {
        if !entry.is(SFlag::S_IFDIR) && !entry.is(SFlag::S_IFREG) {
            return Ok(());
        }
        let file = std::fs::File::from(entry.open()?);
        quota::set_project_of(&file, project, entry.is(SFlag::S_IFDIR))
    };
    let walked = top(path).and_then(|top| walk(top, &set, &|_, _| Ok(())));
    walked.map_err(|errno| {
        SysError::nix(format!("set project {project} below {}", path.display()), errno)
    })
}

/// What a tree takes of the disk. What vanishes meanwhile is not counted; what moves may be missed.
pub fn allocated_bytes(path: &Path) -> u64 {
    let bytes = std::cell::Cell::new(0);
    let count = |entry: Entry<'_>| {
        bytes.set(bytes.get() + entry.about.st_blocks.unsigned_abs() * 512);
        Ok(())
    };
    let _ = top(path).and_then(|top| walk(top, &count, &|_, _| Ok(())));
    bytes.get()
}

fn top(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// Calls `each` with every entry below `top`, a directory before what is in it, and `leave` with every directory
/// after that.
fn walk(
    top: OwnedFd,
    each: &dyn Fn(Entry<'_>) -> nix::Result<()>,
    leave: &dyn Fn(&OwnedFd, &CStr) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut here = top;
    let mut levels = vec![level(&here, CString::default(), each)?];
    while let Some(Level { below, .. }) = levels.last_mut() {
        if let Some(name) = below.pop() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(&here, name.as_c_str(), flags, Mode::empty()) {
                Ok(dir) => here = dir,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            }
            levels.push(level(&here, name, each)?);
            continue;
        }
        let done = levels.pop();
        if let (Some(Level { name, .. }), Some(above)) = (done, levels.last()) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            here = openat(&here, "..", flags, Mode::empty())?;
            if identity(&here)? != above.identity {
                return Err(Errno::ESTALE);
            }
            leave(&here, &name)?;
        }
    }
    Ok(())
}

fn level(
    here: &OwnedFd,
    name: CString,
    each: &dyn Fn(Entry<'_>) -> nix::Result<()>,
) -> nix::Result<Level> {
    let mut below = Vec::new();
    for entry in
        Dir::from_fd(openat(here, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)?.iter()
    {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let about = match fstatat(here, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno),
        };
        each(Entry { dir: here, name, about: &about })?;
        if is(&about, SFlag::S_IFDIR) {
            below.push(name.to_owned());
        }
    }
    Ok(Level { identity: identity(here)?, name, below })
}

fn identity(dir: &OwnedFd) -> nix::Result<(u64, u64)> {
    fstat(dir.as_fd()).map(|about| (about.st_dev, about.st_ino))
}

fn is(about: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == kind
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_removed_and_its_symlinks_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "x").unwrap();
        fs::write(tree.join("a/file"), vec![1; 8192]).unwrap();
        symlink(&other, tree.join("a/b/out")).unwrap();
        nix::unistd::mkfifo(&tree.join("a/pipe"), Mode::S_IRUSR).unwrap();
        assert!(allocated_bytes(&tree) >= 8192);
        remove(&tree).unwrap();
        assert!(!tree.exists() && other.join("kept").exists());
        remove(&tree).unwrap();
        symlink(&other, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.is_symlink() && other.join("kept").exists());
    }

    #[test]
    fn a_tree_may_be_deeper_than_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = top(dir.path()).unwrap();
        for _ in 0..3_000 {
            nix::sys::stat::mkdirat(&here, "tree", Mode::S_IRWXU).unwrap();
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
            here = openat(&here, "tree", flags, Mode::empty()).unwrap();
        }
        let tree = dir.path().join("tree");
        assert!(allocated_bytes(&tree) > 0);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
