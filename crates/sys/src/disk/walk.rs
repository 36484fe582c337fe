//! Walks whole trees of somebody else's files, however deep: few directories are open at a time, no path is longer
//! than a name, no symlink is followed and no mount entered.
//!
//! A tree may be changed by others while it is walked. Every name is therefore opened under the descriptor of its
//! directory, and what is there is asked of the descriptor, never of the name again. A way back up leads to where
//! the way down began, or the walk ends with an error.

mod copy;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, fsync, unlinkat};

pub use self::copy::copy;
use super::quota;
use crate::SysError;

/// Directories on the way to where a walk is that stay open. Others are found again by "..".
const OPEN_MAX: usize = 32;
/// So many directories of one are known by name while they are removed.
const EMPTIED_AT_ONCE: usize = 1024;
/// A count that is broken off by chance is made again; by design, it is broken off again.
const COUNTED_AGAIN_MAX: usize = 3;
/// What the owner of a directory may do with it.
const OWNERS: u32 = 0o700;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);
/// A file that turns out to be a pipe keeps nobody waiting.
const FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

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

    fn open(&self, flags: OFlag) -> nix::Result<OwnedFd> {
        open_at(self.dir, self.name, flags)
    }
}

/// What is done on a walk. A directory is an entry of the one above it first; then it is entered, and left when
/// all that is below it is done.
trait Visit {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()>;

    /// `None`: it is passed over.
    fn open(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
        unless_gone(open_at(above, name, DIRECTORY))
    }

    fn enter(&mut self, _dir: &OwnedFd, _name: &CStr) -> nix::Result<()> {
        Ok(())
    }

    fn leave(&mut self, _above: &OwnedFd, _name: &CStr) -> nix::Result<()> {
        Ok(())
    }

    /// Whether what it has left is gone.
    fn empties(&self) -> bool {
        false
    }
}

/// Removes whatever is at `path`. What vanishes meanwhile need not be removed.
pub fn remove(path: &Path) -> Result<(), SysError> {
    let failed = |errno| SysError::nix(format!("remove {}", path.display()), errno);
    let here = nix::fcntl::AT_FDCWD;
    match top_to_empty(path) {
        Ok(top) => {
            walk(top, &mut Remove).map_err(failed)?;
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
    let cleared = top_to_empty(path).and_then(|top| walk(top, &mut Remove));
    cleared.map_err(|errno| SysError::nix(format!("clear {}", path.display()), errno))
}

struct Remove;

impl Visit for Remove {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        match entry.is(SFlag::S_IFDIR) {
            true => Ok(()),
            false => gone(unlinkat(entry.dir, entry.name, UnlinkatFlags::NoRemoveDir)),
        }
    }

    fn open(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
        let opened = open_at(above, name, DIRECTORY);
        if opened.as_ref().err() != Some(&Errno::EACCES) {
            return unless_gone(opened);
        }
        let found = unless_gone(open_at(above, name, OFlag::O_PATH))?;
        found.as_ref().map_or(Ok(()), unlock)?;
        unless_gone(open_at(above, name, DIRECTORY))
    }

    fn enter(&mut self, dir: &OwnedFd, _: &CStr) -> nix::Result<()> {
        if crate::is_root() { Ok(()) } else { unlock(dir) }
    }

    fn leave(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<()> {
        gone(unlinkat(above, name, UnlinkatFlags::RemoveDir))
    }

    fn empties(&self) -> bool {
        true
    }
}

/// The top of what is to be emptied, however its owner has closed it.
fn top_to_empty(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !crate::is_root() {
        let found = nix::fcntl::open(path, flags, Mode::empty())?;
        unlock(&found)?;
    }
    top(path)
}

/// Opens a directory of our own that was closed to us: without root, a tenant is who we are.
fn unlock(dir: &OwnedFd) -> nix::Result<()> {
    let about = fstat(dir)?;
    let is_open = about.st_mode & OWNERS == OWNERS;
    if is_open || about.st_uid != nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    // By the descriptor, which may be of a directory that cannot be opened for more.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mode = Mode::from_bits_truncate(about.st_mode | OWNERS);
    fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)
}

fn gone(removed: nix::Result<()>) -> nix::Result<()> {
    unless_gone(removed).map(drop)
}

fn unless_gone<T>(found: nix::Result<T>) -> nix::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Gives a tree to another owner, symlinks themselves included. Its top is given last, so that who repeats this
/// knows whose it was. A file with several names that was not the former owner's stays as it is: not all of them
/// need be in the tree.
pub fn give(path: &Path, uid: u32, gid: u32) -> Result<(), SysError> {
    let ids = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let given = top(path).and_then(|top| {
        let owners = [fstat(&top)?.st_uid, uid];
        walk(top, &mut Give { ids, owners })
    });
    given.map_err(|errno| SysError::nix(format!("chown below {}", path.display()), errno))?;
    crate::path::give(path, uid, gid)
}

struct Give {
    ids: (Option<Uid>, Option<Gid>),
    /// The former and the new one.
    owners: [u32; 2],
}

impl Visit for Give {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        let Some(found) = unless_gone(entry.open(OFlag::O_PATH))? else { return Ok(()) };
        let about = fstat(&found)?;
        let shared = !is(&about, SFlag::S_IFDIR) && about.st_nlink > 1;
        if shared && !self.owners.contains(&about.st_uid) {
            return Ok(());
        }
        fchownat(&found, c"", self.ids.0, self.ids.1, AtFlags::AT_EMPTY_PATH)
    }
}

/// Puts a tree into a project of quotas. What cannot be opened, like a pipe, takes no room.
pub fn set_project(path: &Path, project: u32) -> Result<(), SysError> {
    quota::set_project(path, project)?;
    let walked = top(path).and_then(|top| walk(top, &mut SetProject { project }));
    walked.map_err(|errno| {
        SysError::nix(format!("set project {project} below {}", path.display()), errno)
    })
}

struct SetProject {
    project: u32,
}

impl Visit for SetProject {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        if !entry.is(SFlag::S_IFDIR) && !entry.is(SFlag::S_IFREG) {
            return Ok(());
        }
        let Some(found) = unless_gone(entry.open(FILE))? else { return Ok(()) };
        let hands_down = is(&fstat(&found)?, SFlag::S_IFDIR);
        quota::set_project_of(&File::from(found), self.project, hands_down)
    }
}

/// What a tree of ours takes of the disk. What vanishes meanwhile is not counted; what moves may be missed.
pub fn allocated_bytes(path: &Path) -> u64 {
    counted(path).allocated_bytes
}

/// Why a tree is more than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    Bytes(u64),
    /// More than it may have; how many more is not counted.
    Files,
    /// Whoever may change it has not let it be counted.
    Uncounted(&'static str),
}

/// Counts a tree that its owner may change meanwhile. How long that takes is bounded by what it may hold: a walk
/// that somebody keeps going in circles meets more files than that, and one that he breaks off, or keeps out of a
/// directory, has counted nothing. An error is nothing of his doing, and tells nothing.
pub fn excess(path: &Path, bytes_max: u64, files_max: u64) -> Result<Option<Excess>, SysError> {
    let mut last = None;
    for _ in 0..COUNTED_AGAIN_MAX {
        let mut count = Count { files_max: Some(files_max), ..Count::default() };
        last = match top(path).and_then(|top| walk(top, &mut count)) {
            Ok(()) if count.allocated_bytes > bytes_max => {
                return Ok(Some(Excess::Bytes(count.allocated_bytes)));
            }
            Ok(()) | Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::E2BIG) => return Ok(Some(Excess::Files)),
            Err(errno @ (Errno::EACCES | Errno::ESTALE | Errno::ELOOP | Errno::ENOTDIR)) => {
                Some(Excess::Uncounted(errno.desc()))
            }
            Err(errno) => return Err(SysError::nix(format!("count {}", path.display()), errno)),
        };
    }
    Ok(last)
}

/// How long the files of a tree are together, as they say themselves.
pub fn length_bytes(path: &Path) -> u64 {
    counted(path).length_bytes
}

fn counted(path: &Path) -> Count {
    let mut count = Count::default();
    let _ = top(path).and_then(|top| walk(top, &mut count));
    count
}

#[derive(Default)]
struct Count {
    allocated_bytes: u64,
    length_bytes: u64,
    files: u64,
    /// Of a tree that somebody changes, who is to be believed in nothing.
    files_max: Option<u64>,
}

impl Visit for Count {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        self.files += 1;
        if self.files_max.is_some_and(|max| self.files > max) {
            return Err(Errno::E2BIG);
        }
        self.allocated_bytes += entry.about.st_blocks.unsigned_abs() * 512;
        if entry.is(SFlag::S_IFREG) {
            self.length_bytes += entry.about.st_size.unsigned_abs();
        }
        Ok(())
    }

    /// One that is something else by now does not keep the others from being counted.
    fn open(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
        let opened = open_at(above, name, DIRECTORY);
        let is_something_else =
            matches!(opened, Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV));
        if is_something_else || self.files_max.is_none() {
            Ok(opened.ok())
        } else {
            opened.map(Some)
        }
    }
}

/// Has every file and directory of a tree be on disk.
pub fn sync(path: &Path) -> Result<(), SysError> {
    let synced = top(path).and_then(|top| {
        fsync(&top)?;
        walk(top, &mut SyncAll)
    });
    synced.map_err(|errno| SysError::nix(format!("sync {}", path.display()), errno))
}

struct SyncAll;

impl Visit for SyncAll {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        match entry.is(SFlag::S_IFREG) {
            true => fsync(entry.open(FILE)?),
            false => Ok(()),
        }
    }

    fn enter(&mut self, dir: &OwnedFd, _: &CStr) -> nix::Result<()> {
        fsync(dir)
    }
}

fn top(path: &Path) -> nix::Result<OwnedFd> {
    let flags = DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// Opens a name in a directory: what is there itself, and nothing that is mounted over it.
fn open_at(dir: &OwnedFd, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(dir, name, OpenHow::new().flags(flags).resolve(resolve))
}

/// Where in a tree somebody is, and the directories above that up to the top.
struct Trail {
    here: OwnedFd,
    above: Vec<Above>,
}

enum Above {
    Open(OwnedFd),
    /// Of which only the identity is known.
    Closed((u64, u64)),
}

impl Trail {
    fn new(top: OwnedFd) -> Self {
        Self { here: top, above: Vec::new() }
    }

    fn down(&mut self, dir: OwnedFd) -> nix::Result<()> {
        self.above.push(Above::Open(std::mem::replace(&mut self.here, dir)));
        let far = self.above.len().checked_sub(OPEN_MAX).and_then(|at| self.above.get_mut(at));
        if let Some(far) = far
            && let Above::Open(dir) = far
        {
            let identity = identity(dir)?;
            *far = Above::Closed(identity);
        }
        Ok(())
    }

    /// False: this is the top.
    fn up(&mut self) -> nix::Result<bool> {
        self.here = match self.above.pop() {
            None => return Ok(false),
            Some(Above::Open(dir)) => dir,
            Some(Above::Closed(was)) => {
                let flags = DIRECTORY | OFlag::O_CLOEXEC;
                let dir = openat(&self.here, c"..", flags, Mode::empty())?;
                if identity(&dir)? != was {
                    return Err(Errno::ESTALE);
                }
                dir
            }
        };
        Ok(true)
    }
}

/// A directory on the way: what it is called, and what of it is still to be entered.
struct Level {
    name: CString,
    below: Vec<CString>,
    /// Whether there may be more, which is seen once these are gone.
    has_more: bool,
}

impl Level {
    fn begin(here: &OwnedFd, name: CString, visit: &mut dyn Visit) -> nix::Result<Self> {
        let below = list(here, visit)?;
        let has_more = visit.empties() && below.len() >= EMPTIED_AT_ONCE;
        Ok(Self { name, below, has_more })
    }
}

fn walk(top: OwnedFd, visit: &mut dyn Visit) -> nix::Result<()> {
    let mut trail = Trail::new(top);
    let mut levels = vec![Level::begin(&trail.here, CString::default(), visit)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.pop() {
            if let Some(dir) = visit.open(&trail.here, &name)? {
                visit.enter(&dir, &name)?;
                trail.down(dir)?;
                levels.push(Level::begin(&trail.here, name, visit)?);
            }
            continue;
        }
        if level.has_more {
            *level = Level::begin(&trail.here, std::mem::take(&mut level.name), visit)?;
            continue;
        }
        if trail.up()? {
            visit.leave(&trail.here, &level.name)?;
        }
        levels.pop();
    }
    Ok(())
}

/// Visits what is in a directory, and returns the directories of it; of those that go, the next few, so that whoever
/// makes millions of them fills nobody's memory.
fn list(here: &OwnedFd, visit: &mut dyn Visit) -> nix::Result<Vec<CString>> {
    let mut below = Vec::new();
    let flags = DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::from_fd(openat(here, c".", flags, Mode::empty())?)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let about = fstatat(here, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let Some(about) = unless_gone(about)? else { continue };
        visit.entry(Entry { dir: here, name, about: &about })?;
        if is(&about, SFlag::S_IFDIR) {
            below.push(name.to_owned());
            if visit.empties() && below.len() >= EMPTIED_AT_ONCE {
                break;
            }
        }
    }
    Ok(below)
}

fn identity(dir: &OwnedFd) -> nix::Result<(u64, u64)> {
    fstat(dir).map(|about| (about.st_dev, about.st_ino))
}

fn is(about: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == kind
}

#[cfg(test)]
mod tests;
