//! Files in a directory that others may write to, as root meets them.
//!
//! The directory is opened once. What happens in it after that is done by its descriptor and one name in it,
//! so that nothing that is planted or swapped meanwhile leads anywhere else:
//!
//! ```text
//!   read   name --openat2 O_PATH, beneath--> fstat: a regular file? --/proc/self/fd--> that very file
//!   write  bytes --> random name, O_EXCL --> fsync --> renameat over name --> fsync of the directory
//! ```
//!
//! A FIFO or a device is never opened, and a link that lies where something is written is replaced. For what
//! is done in a tenant's directory as that tenant, see [`crate::path::Tree`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use crate::SysError;

/// The kernel gives up on a path with `..` in it when anything is renamed meanwhile, and wants to be asked
/// again; whoever renames without end gets an error.
const RESOLVED_AGAIN_MAX: usize = 16;
/// Bytes of a random name: nobody guesses it, and no two meet.
const NAME_BYTES: usize = 12;

/// Whether a symlink is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    Refused,
    /// As long as each step of the way stays beneath the directory, and none is one of /proc's.
    Within,
}

impl Links {
    fn resolve(self) -> ResolveFlag {
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        match self {
            Self::Refused => beneath | ResolveFlag::RESOLVE_NO_SYMLINKS,
            Self::Within => beneath,
        }
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Link,
    /// A FIFO, a socket or a device.
    Other,
}

/// What is known of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    pub kind: Kind,
    /// Permissions, and the set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    pub modified_ns: i128,
    pub changed_ns: i128,
}

impl Meta {
    fn of(stat: &FileStat) -> Self {
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Link,
            _ => Kind::Other,
        };
        let nanos =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            device: stat.st_dev,
            inode: stat.st_ino,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Why a file is not read. The texts go on from its name.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("is a symlink out of the directory")]
    Outside,
    #[error("is a symlink, which is not followed")]
    Link,
    #[error("is not a file")]
    NotAFile,
    #[error("is {bytes} bytes, the limit is {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error("{}", .0.source)]
    Sys(SysError),
}

impl ReadError {
    /// Whether nothing is there, or a link that leads to nothing.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Sys(error) => error.source.kind() == io::ErrorKind::NotFound,
            Self::Outside | Self::Link | Self::NotAFile | Self::TooLarge { .. } => false,
        }
    }

    /// As an error of the file system's, for those who know no other.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Sys(error) => error.source,
            other @ (Self::Outside | Self::Link | Self::NotAFile | Self::TooLarge { .. }) => {
                io::Error::other(other.to_string())
            }
        }
    }
}

impl From<SysError> for ReadError {
    fn from(error: SysError) -> Self {
        Self::Sys(error)
    }
}

/// An opened directory. Every name is one component; one with a `/` in it is refused.
#[derive(Debug)]
pub struct Beneath {
    dir: OwnedFd,
    at: PathBuf,
}

impl Beneath {
    /// Opens a directory that is named by somebody who is trusted: links on the way to it are followed.
    pub fn open(dir: &Path) -> Result<Self, SysError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = nix::fcntl::open(dir, flags, Mode::empty())
            .map_err(|errno| SysError::nix(format!("open {}", dir.display()), errno))?;
        Ok(Self { dir: opened, at: dir.to_owned() })
    }

    /// Holds one that may be entered, whether or not it may be listed.
    pub fn hold(dir: &Path) -> Result<Self, SysError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let held = nix::fcntl::open(dir, flags, Mode::empty())
            .map_err(|errno| SysError::nix(format!("open {}", dir.display()), errno))?;
        Ok(Self { dir: held, at: dir.to_owned() })
    }

    /// Opens the directory that a file is or will be in, and says what it is called there.
    pub fn parent_of(path: &Path) -> Result<(Self, OsString), SysError> {
        let name = name_of(path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok((Self::open(parent.unwrap_or_else(|| Path::new(".")))?, name.to_owned()))
    }

    /// Where a file of the directory is, for messages and for those who can only take a path.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.at.join(name)
    }

    /// What is known of the directory itself.
    pub fn meta(&self) -> Result<Meta, SysError> {
        let stat = nix::sys::stat::fstat(&self.dir);
        stat.map(|stat| Meta::of(&stat)).map_err(|errno| self.failed("stat", OsStr::new(""), errno))
    }

    /// Everything that is in it. One that breaks off half way, or is longer than `max`, is an error, not a short list.
    pub fn names(&self, max: usize) -> Result<Vec<OsString>, SysError> {
        let failed = |errno| self.failed("list", OsStr::new(""), errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let listing = nix::dir::Dir::openat(&self.dir, ".", flags, Mode::empty());
        let mut listing = listing.map_err(failed)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                if names.len() == max {
                    let source = io::Error::other(format!("there are more than {max} files in it"));
                    return Err(SysError::io("list", &self.at, source));
                }
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool, SysError> {
        match self.names(0) {
            Ok(_) => Ok(true),
            Err(error) if error.source.raw_os_error().is_none() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the name itself stands for, be it a link.
    pub fn lstat(&self, name: &OsStr) -> Result<Option<Meta>, SysError> {
        let name = self.single(name)?;
        match nix::sys::stat::fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.failed("stat", name, errno)),
        }
    }

    /// What the name leads to. A link that leads to nothing is an error.
    pub fn stat(&self, name: &OsStr, links: Links) -> Result<Option<Meta>, ReadError> {
        match self.lstat(name)? {
            Some(meta) if meta.kind == Kind::Link => {
                self.handle(name, links).map(|(_, meta)| Some(meta))
            }
            found => Ok(found),
        }
    }

    /// Where a link says that it leads.
    pub fn read_link(&self, name: &OsStr) -> Result<PathBuf, SysError> {
        let target = nix::fcntl::readlinkat(&self.dir, self.single(name)?);
        target.map(PathBuf::from).map_err(|errno| self.failed("readlink", name, errno))
    }

    /// All of a regular file that is no larger than `bytes_max`.
    pub fn read(&self, name: &OsStr, links: Links, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
        let (file, meta) = self.open_file(name, links)?;
        let too_large = |bytes| ReadError::TooLarge { bytes, max: bytes_max };
        if meta.bytes > bytes_max {
            return Err(too_large(meta.bytes));
        }
        let mut bytes = Vec::new();
        file.take(bytes_max + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| SysError::io("read", &self.path(name), source))?;
        let found = bytes.len() as u64;
        if found > bytes_max { Err(too_large(found)) } else { Ok(bytes) }
    }

    /// Opens a regular file for reading, with what is known of that very file.
    pub fn open_file(&self, name: &OsStr, links: Links) -> Result<(File, Meta), ReadError> {
        let (handle, meta) = self.handle(name, links)?;
        if meta.kind != Kind::File {
            return Err(ReadError::NotAFile);
        }
        // Nonblocking, or whoever holds a lease on it would hold us too.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let same = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let file = nix::fcntl::open(same.as_str(), flags, Mode::empty())
            .map_err(|errno| self.failed("open", name, errno))?;
        Ok((File::from(file), meta))
    }

    /// Holds on to what the name leads to, without opening it.
    fn handle(&self, name: &OsStr, links: Links) -> Result<(OwnedFd, Meta), ReadError> {
        let name = self.single(name)?;
        let handle = match open_at(&self.dir, name, OFlag::O_PATH, Mode::empty(), links) {
            Ok(handle) => handle,
            Err(Errno::EXDEV) => return Err(ReadError::Outside),
            Err(Errno::ELOOP) => return Err(ReadError::Link),
            Err(errno) => return Err(self.failed("openat2", name, errno).into()),
        };
        let stat = nix::sys::stat::fstat(&handle);
        let meta =
            stat.map(|stat| Meta::of(&stat)).map_err(|errno| self.failed("stat", name, errno))?;
        Ok((handle, meta))
    }

    /// Sets who may do what with a regular file, and makes what it holds last.
    pub fn seal(&self, name: &OsStr, mode: u32) -> Result<(), ReadError> {
        let (file, _) = self.open_file(name, Links::Refused)?;
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))
            .and_then(|()| nix::unistd::fsync(&file))
            .map_err(|errno| self.failed("seal", name, errno))?;
        Ok(())
    }

    /// Begins a file that is going to be one of this directory's.
    pub fn begin(&self, mode: u32) -> Result<Unfinished<'_>, SysError> {
        Unfinished::create(self.dir.as_fd(), &self.at, mode)
    }

    /// Makes `name` hold exactly `bytes`, whole or not at all, durably. A link of that name is replaced.
    pub fn write(&self, name: &OsStr, bytes: &[u8], mode: u32) -> Result<(), SysError> {
        let mut file = self.begin(mode)?;
        file.write_all(bytes)?;
        file.sync()?;
        file.replace(name)?;
        self.sync()
    }

    /// Takes a name away, but no directory; one that is gone already is fine.
    pub fn remove(&self, name: &OsStr) -> Result<(), SysError> {
        match nix::unistd::unlinkat(&self.dir, self.single(name)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("unlink", name, errno)),
        }
    }

    /// Makes a directory. One that is there is an error, `EEXIST`.
    pub fn make_dir(&self, name: &OsStr, mode: u32) -> Result<(), SysError> {
        let mode = Mode::from_bits_truncate(mode);
        nix::sys::stat::mkdirat(&self.dir, self.single(name)?, mode)
            .map_err(|errno| self.failed("mkdir", name, errno))
    }

    /// Opens a directory that lies in this one, be it no link.
    pub fn open_dir(&self, name: &OsStr) -> Result<Self, SysError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let opened = open_at(&self.dir, self.single(name)?, flags, Mode::empty(), Links::Refused);
        let dir = opened.map_err(|errno| self.failed("open", name, errno))?;
        Ok(Self { dir, at: self.path(name) })
    }

    /// Renames within the directory; what has the new name is replaced.
    pub fn rename(&self, old: &OsStr, new: &OsStr) -> Result<(), SysError> {
        let (from, to) = (self.single(old)?, self.single(new)?);
        nix::fcntl::renameat(&self.dir, from, &self.dir, to)
            .map_err(|errno| self.failed("rename", old, errno))
    }

    /// Gives a file a second name, which nothing may have.
    pub fn link(&self, old: &OsStr, new: &OsStr) -> Result<(), SysError> {
        let (from, to) = (self.single(old)?, self.single(new)?);
        nix::unistd::linkat(&self.dir, from, &self.dir, to, AtFlags::empty())
            .map_err(|errno| self.failed("link", old, errno))
    }

    /// Makes what was renamed, linked and removed last.
    pub fn sync(&self) -> Result<(), SysError> {
        nix::unistd::fsync(&self.dir).map_err(|errno| self.failed("sync", OsStr::new(""), errno))
    }

    fn single<'n>(&self, name: &'n OsStr) -> Result<&'n OsStr, SysError> {
        single(name).map_err(|errno| self.failed("use the name", name, errno))
    }

    fn failed(&self, verb: &str, name: &OsStr, errno: Errno) -> SysError {
        SysError::nix(format!("{verb} {}", self.at.join(name).display()), errno)
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A file under a name that nobody can know beforehand, until it is complete and takes its own. One that
/// never does is removed.
#[derive(Debug)]
pub struct Unfinished<'d> {
    dir: BorrowedFd<'d>,
    at: &'d Path,
    name: String,
    file: File,
    placed: bool,
}

impl<'d> Unfinished<'d> {
    /// `at` is where `dir` is, for messages.
    pub(super) fn create(dir: BorrowedFd<'d>, at: &'d Path, mode: u32) -> Result<Self, SysError> {
        let failed = |source| SysError::io("create a file in", at, source);
        let name = random_name().map_err(failed)?;
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(dir, name.as_str(), flags, Mode::from_bits_truncate(mode))
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { dir, at, name, file: file.into(), placed: false })
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), SysError> {
        self.file
            .write_all(bytes)
            .map_err(|source| SysError::io("write a file in", self.at, source))
    }

    /// Where it is until it has a name, for those who can only take a path and write to it, or read.
    pub fn path(&self) -> PathBuf {
        self.at.join(&self.name)
    }

    /// What was written so far, from where it was read last.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all that is left of another file.
    pub fn copy(&mut self, mut from: &File) -> Result<(), SysError> {
        let copied = io::copy(&mut from, &mut self.file);
        copied.map(drop).map_err(|source| SysError::io("write a file in", self.at, source))
    }

    pub fn sync(&self) -> Result<(), SysError> {
        self.file.sync_all().map_err(|source| SysError::io("sync a file in", self.at, source))
    }

    /// Makes it another user's.
    pub fn give(&self, uid: u32, gid: u32) -> Result<(), SysError> {
        nix::unistd::fchown(&self.file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| SysError::nix(format!("chown a file in {}", self.at.display()), errno))
    }

    /// Gives it its name. What has that name, be it a link, is replaced.
    pub fn replace(mut self, name: &OsStr) -> Result<(), SysError> {
        let placed = single(name)
            .and_then(|name| nix::fcntl::renameat(self.dir, self.name.as_str(), self.dir, name));
        self.placed = placed.is_ok();
        placed.map_err(|errno| self.not_placed(name, errno))
    }

    /// Gives it a name that nothing has; otherwise the error is `EEXIST`.
    pub fn place(mut self, name: &OsStr) -> Result<(), SysError> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        let placed = single(name).and_then(|name| {
            match nix::fcntl::renameat2(self.dir, self.name.as_str(), self.dir, name, flags) {
                // Some file systems know only the older way; its first name is removed with us.
                Err(Errno::EINVAL) => {
                    let old = self.name.as_str();
                    nix::unistd::linkat(self.dir, old, self.dir, name, AtFlags::empty())
                }
                Err(errno) => Err(errno),
                Ok(()) => {
                    self.placed = true;
                    Ok(())
                }
            }
        });
        placed.map_err(|errno| self.not_placed(name, errno))
    }

    fn not_placed(&self, name: &OsStr, errno: Errno) -> SysError {
        SysError::nix(format!("rename to {}", self.at.join(name).display()), errno)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.placed {
            let name = self.name.as_str();
            let _ = nix::unistd::unlinkat(self.dir, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// What a path's last step is called.
pub(super) fn name_of(path: &Path) -> Result<&OsStr, SysError> {
    path.file_name().ok_or_else(|| {
        SysError::nix(format!("open {}: it has no name", path.display()), Errno::EINVAL)
    })
}

/// Begins with a dot, so that nobody takes it for a file of theirs.
pub fn random_name() -> io::Result<String> {
    let mut bytes = [0; NAME_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(".sodium-{digits}"))
}

/// openat2 beneath `dir`.
pub(super) fn open_at<P: ?Sized + NixPath>(
    dir: &OwnedFd,
    path: &P,
    flags: OFlag,
    mode: Mode,
    links: Links,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(links.resolve());
    let mut last = Errno::EAGAIN;
    for _ in 0..RESOLVED_AGAIN_MAX {
        match nix::fcntl::openat2(dir, path, how) {
            Err(errno @ (Errno::EAGAIN | Errno::EINTR)) => last = errno,
            done => return done,
        }
    }
    Err(last)
}

fn single(name: &OsStr) -> nix::Result<&OsStr> {
    let bytes = name.as_bytes();
    let odd = matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/');
    if odd { Err(Errno::EINVAL) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn only_regular_files_are_read_and_links_only_beneath() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("in").join(name);
        fs::create_dir_all(at("..2026")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(at("..2026/a"), "a").unwrap();
        symlink("..2026", at("..data")).unwrap();
        symlink("..data/a", at("a")).unwrap();
        symlink("../secret", at("up")).unwrap();
        symlink(dir.path().join("secret"), at("out")).unwrap();
        symlink("/proc/self/fd/0", at("magic")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("round", at("round")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        symlink("pipe", at("to-pipe")).unwrap();
        fs::write(at("large"), vec![0; 9]).unwrap();
        let beneath = Beneath::open(&dir.path().join("in")).unwrap();
        let said = |what, links| match beneath.read(name(what), links, 8) {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(error) => error.to_string(),
        };
        let outside = "is a symlink out of the directory";
        let unfollowed = "is a symlink, which is not followed";
        for (what, within, refused) in [
            ("a", "a", unfollowed),
            ("up", outside, unfollowed),
            ("out", outside, unfollowed),
            ("magic", outside, unfollowed),
            ("zero", outside, unfollowed),
            ("round", unfollowed, unfollowed),
            ("dangling", "No such file", unfollowed),
            ("pipe", "is not a file", "is not a file"),
            ("to-pipe", "is not a file", unfollowed),
            ("..data", "is not a file", unfollowed),
            ("..2026", "is not a file", "is not a file"),
            ("large", "is 9 bytes, the limit is 8", "is 9 bytes, the limit is 8"),
            ("../secret", "Invalid argument", "Invalid argument"),
            ("..", "Invalid argument", "Invalid argument"),
            ("", "Invalid argument", "Invalid argument"),
        ] {
            let found = (said(what, Links::Within), said(what, Links::Refused));
            assert!(found.0.starts_with(within), "{what}: {found:?}");
            assert!(found.1.starts_with(refused), "{what}: {found:?}");
        }
        let mut names = beneath.names(100).unwrap();
        names.sort_unstable();
        assert_eq!(names.len(), 12, "{names:?}");
        assert!(beneath.names(11).unwrap_err().source.to_string().contains("more than 11"));
        assert!(!beneath.is_empty().unwrap());
        assert_eq!(beneath.stat(name("none"), Links::Within).unwrap(), None);
        assert_eq!(beneath.stat(name("a"), Links::Within).unwrap().unwrap().bytes, 1);
        assert_eq!(beneath.lstat(name("a")).unwrap().unwrap().kind, Kind::Link);
    }

    #[test]
    fn what_is_written_replaces_a_link_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "kept").unwrap();
        symlink(outside.path(), dir.path().join("a")).unwrap();
        let beneath = Beneath::open(dir.path()).unwrap();
        beneath.write(name("a"), b"new", 0o600).unwrap();
        let meta = fs::symlink_metadata(dir.path().join("a")).unwrap();
        assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"new");
        assert_eq!(fs::read(outside.path()).unwrap(), b"kept");
        for bad in ["../b", "..", ".", "", "x/y"] {
            assert!(beneath.write(name(bad), b"no", 0o600).is_err(), "{bad:?}");
            assert!(beneath.remove(name(bad)).is_err(), "{bad:?}");
        }
        // Given up half way.
        drop(beneath.begin(0o600).unwrap());
        let taken = beneath.begin(0o600).unwrap().place(name("a")).unwrap_err();
        assert_eq!(taken.source.kind(), io::ErrorKind::AlreadyExists);
        beneath.begin(0o600).unwrap().place(name("b")).unwrap();
        let mut names = beneath.names(100).unwrap();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        beneath.remove(name("a")).unwrap();
        beneath.remove(name("a")).unwrap();
        assert_eq!(beneath.names(100).unwrap(), ["b"]);
    }
}
