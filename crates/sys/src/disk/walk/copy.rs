//! Copies of trees that somebody else may still change.
//!
//! What is read is opened as the owner of the tree, so that the worst trick leads to what its author could read
//! anyway. What is written belongs to nobody but us until it is whole: each directory is given its owner and its
//! mode when all that is in it is there, the top one last.
//!
//! ```text
//!   kept: contents, holes, symlinks, pipes, names of one file, owners, modes, times, user.* attributes
//!   left out: sockets and devices; ACLs, since a sandbox has one user; capabilities of files
//!   set-user-id and set-group-id bits stay on what is the owner's own, and on nothing else
//! ```

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens,
    mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkdir, mkfifoat, symlinkat, unlinkat,
};

use super::{DIRECTORY, Entry, FILE, Trail, Visit, is, open_at, top, unless_gone, walk};
use crate::SysError;
use crate::disk::contents::Means;
use crate::path::Identity;

/// Of everything until it is whole.
const PRIVATE: Mode = Mode::S_IRWXU;
/// What a mode has beside what who may do.
const SET_ID: Mode = Mode::S_ISUID.union(Mode::S_ISGID);
/// Attributes that a program may set on its own files.
const OWN_ATTRIBUTES: &[u8] = b"user.";
/// The kernel's own bounds.
const ATTRIBUTE_NAMES_BYTES_MAX: usize = 1 << 16;
const ATTRIBUTE_BYTES_MAX: usize = 1 << 16;

/// Copies the tree at `from` to `to`, where there is nothing yet. With `owner`, nothing is read that this user could
/// not read or does not own.
pub fn copy(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<(), SysError> {
    let failed = |errno| SysError::nix(format!("copy {}", from.display()), errno);
    let source = top(from).map_err(failed)?;
    let about = fstat(&source).map_err(failed)?;
    let made = mkdir(to, PRIVATE).and_then(|()| Ok((top(to)?, top(to)?)));
    let (target, beside) =
        made.map_err(|errno| SysError::nix(format!("mkdir {}", to.display()), errno))?;
    let mut copying = Copying {
        owner,
        trail: Trail::new(target),
        dirs: vec![about],
        means: Means::default(),
        links: Links { top: beside, known: HashMap::new(), count: 0, pool: None },
        failed: None,
    };
    let copied = copying
        .attributes(&source)
        .and_then(|()| walk(source, &mut copying))
        .and_then(|()| copying.links.remove())
        .and_then(|()| copying.finish_dir());
    copied.map_err(|errno| match copying.failed {
        // Somebody else's words, which may be anything.
        Some(name) => {
            let call = format!("copy {}: {:?} in it", from.display(), name.to_string_lossy());
            SysError::nix(call, errno)
        }
        None => failed(errno),
    })
}

struct Copying {
    owner: Option<(u32, u32)>,
    /// Where the copy of the directory is in which the walk is.
    trail: Trail,
    /// What those directories are to be when they are whole.
    dirs: Vec<FileStat>,
    means: Means,
    links: Links,
    /// What could not be copied.
    failed: Option<CString>,
}

impl Visit for Copying {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        let copied = unless_gone(self.copy_entry(entry));
        self.note(entry.name, copied).map(drop)
    }

    fn open(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
        let opened = unless_gone(self.open_as_owner(above, name, DIRECTORY));
        self.note(name, opened)
    }

    fn enter(&mut self, dir: &OwnedFd, name: &CStr) -> nix::Result<()> {
        let entered = self.enter_dir(dir, name);
        self.note(name, entered)
    }

    fn leave(&mut self, _: &OwnedFd, name: &CStr) -> nix::Result<()> {
        let left = self.finish_dir().and_then(|()| self.trail.up().map(drop));
        self.note(name, left)
    }
}

impl Copying {
    fn note<T>(&mut self, name: &CStr, done: nix::Result<T>) -> nix::Result<T> {
        if done.is_err() {
            self.failed = Some(name.to_owned());
        }
        done
    }

    /// As the owner. What is the owner's own can be read whatever its mode says.
    fn open_as_owner(&self, dir: &OwnedFd, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
        let as_owner = Identity::assume(self.owner);
        let opened = open_at(dir, name, flags);
        drop(as_owner);
        match (opened, self.owner) {
            (Err(Errno::EACCES), Some((uid, _))) => {
                let found = open_at(dir, name, flags)?;
                if fstat(&found)?.st_uid == uid { Ok(found) } else { Err(Errno::EACCES) }
            }
            (opened, _) => opened,
        }
    }

    fn copy_entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        if entry.is(SFlag::S_IFDIR) || self.links.link(&self.trail.here, entry)? {
            return Ok(());
        }
        if entry.is(SFlag::S_IFREG) {
            return self.file(entry);
        }
        if entry.is(SFlag::S_IFLNK) {
            let leads_to = readlinkat(entry.dir, entry.name)?;
            symlinkat(leads_to.as_os_str(), &self.trail.here, entry.name)?;
        } else if entry.is(SFlag::S_IFIFO) {
            mkfifoat(&self.trail.here, entry.name, PRIVATE)?;
        } else {
            return Ok(());
        }
        self.finish_named(entry)?;
        self.links.remember(&self.trail.here, entry.name, entry.about)
    }

    fn file(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        let source = self.open_as_owner(entry.dir, entry.name, FILE)?;
        let about = fstat(&source)?;
        if !is(&about, SFlag::S_IFREG) {
            return Err(Errno::ESTALE);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let target = openat(&self.trail.here, entry.name, flags, PRIVATE)?;
        self.means.carry(&source, &target, about.st_size)?;
        copy_attributes(&source, &target)?;
        self.finish(&target, &about)?;
        self.links.remember(&self.trail.here, entry.name, &about)
    }

    fn enter_dir(&mut self, dir: &OwnedFd, name: &CStr) -> nix::Result<()> {
        let about = fstat(dir)?;
        mkdirat(&self.trail.here, name, PRIVATE)?;
        let target = open_at(&self.trail.here, name, DIRECTORY)?;
        self.trail.down(target)?;
        self.dirs.push(about);
        self.attributes(dir)
    }

    fn attributes(&self, dir: &OwnedFd) -> nix::Result<()> {
        copy_attributes(dir, &self.trail.here)
    }

    /// All that is in it is there.
    fn finish_dir(&mut self) -> nix::Result<()> {
        match self.dirs.pop() {
            Some(about) => self.finish(&self.trail.here, &about),
            None => Ok(()),
        }
    }

    fn finish(&self, target: &OwnedFd, about: &FileStat) -> nix::Result<()> {
        let (uid, gid) = ids(about);
        let is_given = given(fchown(target, uid, gid))?;
        fchmod(target, self.mode(about, is_given))?;
        let (accessed, modified) = times(about);
        futimens(target, &accessed, &modified)
    }

    /// The same of what is not opened. Nobody else can be where it is.
    fn finish_named(&self, entry: Entry<'_>) -> nix::Result<()> {
        let (dir, name, about) = (&self.trail.here, entry.name, entry.about);
        let (uid, gid) = ids(about);
        let is_given = given(fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW))?;
        if !entry.is(SFlag::S_IFLNK) {
            fchmodat(dir, name, self.mode(about, is_given), FchmodatFlags::FollowSymlink)?;
        }
        let (accessed, modified) = times(about);
        utimensat(dir, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
    }

    fn mode(&self, about: &FileStat, is_given: bool) -> Mode {
        let mode = Mode::from_bits_truncate(about.st_mode);
        let is_own = self.owner.is_none_or(|(uid, _)| uid == about.st_uid);
        if is_given && is_own { mode } else { mode.difference(SET_ID) }
    }
}

fn ids(about: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(about.st_uid)), Some(Gid::from_raw(about.st_gid)))
}

fn times(about: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(about.st_atime, about.st_atime_nsec),
        TimeSpec::new(about.st_mtime, about.st_mtime_nsec),
    )
}

/// Without privileges, what is somebody else's becomes our own.
fn given(done: nix::Result<()>) -> nix::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(Errno::EPERM | Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Files with several names: each that was copied has one more in a directory of its own at the top of the copy, by
/// which it is found from however deep, until the copy is whole.
struct Links {
    top: OwnedFd,
    known: HashMap<(u64, u64), String>,
    count: u64,
    pool: Option<(OwnedFd, CString)>,
}

impl Links {
    /// Makes another name of what was copied before. False: it was not.
    fn link(&self, here: &OwnedFd, entry: Entry<'_>) -> nix::Result<bool> {
        let identity = (entry.about.st_dev, entry.about.st_ino);
        let known = self.known.get(&identity).filter(|_| entry.about.st_nlink > 1);
        let (Some(name), Some((pool, _))) = (known, &self.pool) else { return Ok(false) };
        match linkat(pool, name.as_str(), here, entry.name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // This file system takes fewer names of one file: from here on there are two.
            Err(Errno::EMLINK) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn remember(&mut self, here: &OwnedFd, name: &CStr, about: &FileStat) -> nix::Result<()> {
        if about.st_nlink < 2 {
            return Ok(());
        }
        let number = (self.count + 1).to_string();
        linkat(here, name, self.pool()?, number.as_str(), AtFlags::empty())?;
        self.count += 1;
        self.known.insert((about.st_dev, about.st_ino), number);
        Ok(())
    }

    /// Under a name that nobody could give to something in the tree.
    fn pool(&mut self) -> nix::Result<&OwnedFd> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => {
                let name = format!(".sodium-links-{}", uuid::Uuid::new_v4().simple());
                let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
                mkdirat(&self.top, name.as_c_str(), PRIVATE)?;
                (open_at(&self.top, &name, DIRECTORY)?, name)
            }
        };
        Ok(&self.pool.insert(pool).0)
    }

    fn remove(&self) -> nix::Result<()> {
        let Some((pool, name)) = &self.pool else { return Ok(()) };
        for number in 1..=self.count {
            unlinkat(pool, number.to_string().as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        unlinkat(&self.top, name.as_c_str(), UnlinkatFlags::RemoveDir)
    }
}

/// The attributes that a program may set on its own files, where the file system has some.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> nix::Result<()> {
    // SAFETY: the descriptor is open; without room, the kernel only says how much it needs.
    let length = unsafe { libc::flistxattr(from.as_raw_fd(), std::ptr::null_mut(), 0) };
    match Errno::result(length) {
        Ok(0) | Err(Errno::EOPNOTSUPP) => return Ok(()),
        Ok(_) => (),
        Err(errno) => return Err(errno),
    }
    let mut names = vec![0_u8; ATTRIBUTE_NAMES_BYTES_MAX];
    // SAFETY: the descriptor is open, and the kernel writes no more than the room it is told of.
    let length = unsafe {
        libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), ATTRIBUTE_NAMES_BYTES_MAX)
    };
    names.truncate(usize::try_from(Errno::result(length)?).unwrap_or(0));
    for name in names.split_inclusive(|byte| *byte == 0) {
        if let Ok(name) = CStr::from_bytes_with_nul(name)
            && name.to_bytes().starts_with(OWN_ATTRIBUTES)
        {
            copy_attribute(from, name, to)?;
        }
    }
    Ok(())
}

fn copy_attribute(from: &OwnedFd, name: &CStr, to: &OwnedFd) -> nix::Result<()> {
    let mut value = vec![0_u8; ATTRIBUTE_BYTES_MAX];
    // SAFETY: the descriptor is open, the name ends in NUL, and the kernel writes no more than the room it is told of.
    let length = unsafe {
        let room = value.as_mut_ptr().cast();
        libc::fgetxattr(from.as_raw_fd(), name.as_ptr(), room, ATTRIBUTE_BYTES_MAX)
    };
    let length = match Errno::result(length) {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(Errno::ENODATA) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    // SAFETY: the descriptor is open, the name ends in NUL, and the value has so many bytes.
    let set =
        unsafe { libc::fsetxattr(to.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), length, 0) };
    match Errno::result(set) {
        Ok(_) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}
