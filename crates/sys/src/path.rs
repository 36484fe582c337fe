//! Files inside a directory that somebody hostile may write to.
//!
//! Every path is resolved by the kernel under the directory's own descriptor, with no symlink
//! followed and no way up (openat2, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS), and every access is
//! made with the file-system identity of the directory's owner, so that the worst a trick can
//! reach is what its author could reach anyway.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

use crate::SysError;
use crate::beneath::{self, Beneath, Links, Unfinished};

/// For `OpenOptions::custom_flags`: refuse to open a symlink.
pub const NO_FOLLOW: i32 = libc::O_NOFOLLOW;

/// What was in the way of a file is called so, after its own name and before a few random characters.
const OLD: &str = "sodium-old";
/// So much of its own name, which may be as long as a name can be already.
const OLD_NAME_CHARS: usize = 50;
/// What stands in the way of a directory: a file, a link, or a directory that its owner has closed.
const IN_THE_WAY: [i32; 3] = [libc::ENOTDIR, libc::ELOOP, libc::EACCES];

/// An opened directory and the identity under which it is used.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    at: PathBuf,
    ids: Option<(u32, u32)>,
}

impl Tree {
    /// Opens `dir`. With `ids`, everything inside is done as that user.
    pub fn open(dir: &Path, ids: Option<(u32, u32)>) -> Result<Self, SysError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_PATH;
        let root = nix::fcntl::open(dir, flags, Mode::empty())
            .map_err(|errno| SysError::nix(format!("open {}", dir.display()), errno))?;
        Ok(Self { root, at: dir.to_owned(), ids })
    }

    /// Whether something is at `path`.
    pub fn exists(&self, path: &str) -> bool {
        let _as_owner = Identity::assume(self.ids);
        self.openat(path, OFlag::O_PATH, Mode::empty()).is_ok()
    }

    /// Makes `path` hold exactly `bytes`, whole or not at all. Directories on the way are made, and what is in the
    /// way is moved aside: whoever may write here cannot keep a file from being laid. Returns whether anything had
    /// to be written.
    pub fn ensure_file(&self, path: &str, bytes: &[u8]) -> Result<bool, SysError> {
        let _as_owner = Identity::assume(self.ids);
        if self.holds(path, bytes) {
            return Ok(false);
        }
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (parent, name),
            None => (".", path),
        };
        self.make_dirs(parent)?;
        let dir = self.openat(parent, OFlag::O_DIRECTORY, Mode::empty())?;
        let mut file = Unfinished::create(dir.as_fd(), &self.at, 0o644)?;
        file.write_all(bytes)?;
        if is_dir(&dir, name) {
            move_aside(&dir, name).map_err(|errno| {
                SysError::nix(format!("move {} aside", self.at.join(path).display()), errno)
            })?;
        }
        file.replace(OsStr::new(name))?;
        Ok(true)
    }

    fn holds(&self, path: &str, bytes: &[u8]) -> bool {
        let Ok(fd) = self.openat(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()) else {
            return false;
        };
        let file = File::from(fd);
        let same_size = file.metadata().is_ok_and(|meta| {
            meta.is_file() && usize::try_from(meta.len()).is_ok_and(|len| len == bytes.len())
        });
        let mut found = Vec::new();
        same_size
            && file.take(bytes.len() as u64 + 1).read_to_end(&mut found).is_ok()
            && found == bytes
    }

    fn make_dirs(&self, path: &str) -> Result<(), SysError> {
        let mut done = PathBuf::new();
        for part in Path::new(path).components() {
            let Component::Normal(part) = part else { continue };
            let parent =
                if done.as_os_str().is_empty() { PathBuf::from(".") } else { done.clone() };
            done.push(part);
            let dir = self.openat(&parent.to_string_lossy(), OFlag::O_DIRECTORY, Mode::empty())?;
            let make = || nix::sys::stat::mkdirat(&dir, part, Mode::from_bits_truncate(0o755));
            let made = match make() {
                Err(Errno::EEXIST) if self.is_in_the_way(&done) => {
                    move_aside(&dir, &part.to_string_lossy()).and_then(|()| make())
                }
                Err(Errno::EEXIST) => Ok(()),
                made => made,
            };
            made.map_err(|errno| {
                SysError::nix(format!("mkdir {}", self.at.join(&done).display()), errno)
            })?;
        }
        Ok(())
    }

    /// Of something that is there.
    fn is_in_the_way(&self, path: &Path) -> bool {
        let opened = self.openat(&path.to_string_lossy(), OFlag::O_DIRECTORY, Mode::empty());
        opened.is_err_and(|error| IN_THE_WAY.contains(&error.errno()))
    }

    fn openat(&self, path: &str, flags: OFlag, mode: Mode) -> Result<OwnedFd, SysError> {
        beneath::open_at(&self.root, path, flags, mode, Links::Refused).map_err(|errno| {
            SysError::nix(format!("openat2 {}", self.at.join(path).display()), errno)
        })
    }
}

/// Goes to a directory as a tenant names it: beneath the root of this process, and through no link of the kernel's
/// own making, which lead out of every root (`/proc/self/fd/N`). Refused, if what is there cannot be named from here.
pub fn enter_beneath_root(dir: &Path) -> Result<(), SysError> {
    let failed = |errno| SysError::nix(format!("chdir {}", dir.display()), errno);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open("/", flags, Mode::empty())
        .map_err(|errno| SysError::nix("open /", errno))?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    let found = nix::fcntl::openat2(&root, dir, how).map_err(failed)?;
    nix::unistd::fchdir(&found).map_err(failed)?;
    // What lies outside of the root has no name in here, and the kernel says so.
    match nix::unistd::getcwd() {
        Ok(at) if at.is_absolute() => Ok(()),
        Ok(_) => Err(failed(nix::errno::Errno::EXDEV)),
        Err(errno) => Err(failed(errno)),
    }
}

fn is_dir(dir: &OwnedFd, name: &str) -> bool {
    let about = nix::sys::stat::fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
    about.is_ok_and(|about| about.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Renames something within its directory to what nobody has used before.
fn move_aside(dir: &OwnedFd, name: &str) -> nix::Result<()> {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let kept: String = name.chars().take(OLD_NAME_CHARS).collect();
    let aside = format!("{kept}.{OLD}-{}", &random[..12]);
    nix::fcntl::renameat(dir, name, dir, aside.as_str())
}

/// This thread's file-system identity, taken back when dropped.
pub(super) struct Identity {
    before: Option<(u32, u32)>,
}

impl Identity {
    pub(super) fn assume(ids: Option<(u32, u32)>) -> Self {
        let Some((uid, gid)) = ids else { return Self { before: None } };
        Self { before: Some(set_fs_ids(uid, gid)) }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.before {
            set_fs_ids(uid, gid);
        }
    }
}

/// Sets the calling thread's fsuid and fsgid and returns what they were. The kernel drops the
/// capabilities that override file permissions along with fsuid 0, and restores them with it.
fn set_fs_ids(uid: u32, gid: u32) -> (u32, u32) {
    // SAFETY: both calls take an integer and return the former one; the raw system calls act on
    // this thread alone, which is what is wanted.
    unsafe {
        let old_gid = libc::syscall(libc::SYS_setfsgid, gid);
        let old_uid = libc::syscall(libc::SYS_setfsuid, uid);
        (u32::try_from(old_uid).unwrap_or(0), u32::try_from(old_gid).unwrap_or(0))
    }
}

/// Sets who may do what with a directory of ours.
pub fn set_mode(dir: &Path, mode: u32) -> Result<(), SysError> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(dir, mode).map_err(|source| SysError::io("chmod", dir, source))
}

/// Makes `dir` belong to `uid` and `gid`, without following a symlink.
pub fn give(dir: &Path, uid: u32, gid: u32) -> Result<(), SysError> {
    std::os::unix::fs::lchown(dir, Some(uid), Some(gid))
        .map_err(|source| SysError::io("chown", dir, source))
}

/// Writes a new file that only we may read.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), SysError> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|source| SysError::io("write", path, source))
}

/// Writes a file of ours, whole or not at all, durably. A link of that name is replaced.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), SysError> {
    let (dir, name) = Beneath::parent_of(path)?;
    dir.write(&name, bytes, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swapped::while_swapped;

    #[test]
    fn a_symlink_planted_by_a_tenant_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.join("x"), inside.join("file")).unwrap();
        let tree = Tree::open(&inside, None).unwrap();
        // Nor in the place of a directory, from where it is moved aside.
        assert!(tree.ensure_file("link/x", b"yes").unwrap());
        assert_eq!(std::fs::read(inside.join("link/x")).unwrap(), b"yes");
        assert!(tree.ensure_file("../out/x", b"no").is_err());
        assert!(tree.ensure_file("/etc/sodium-test", b"no").is_err());
        // A symlink in the file's own place is replaced, not followed.
        assert!(tree.ensure_file("file", b"yes").unwrap());
        assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"yes");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn names_that_are_exchanged_meanwhile_have_nothing_laid_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for one in [inside.join("dir"), outside.join("deep")] {
            std::fs::create_dir_all(one).unwrap();
        }
        std::fs::write(outside.join("x"), "kept").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let pair = (inside.join("dir"), inside.join("link"));
        let link = pair.1.clone();
        let mut laid = 0;
        let exchanges = while_swapped(&[pair], || {
            let tree = Tree::open(&inside, None).unwrap();
            for round in 0..300 {
                for name in ["dir/x", "dir/deep/x"] {
                    laid +=
                        usize::from(tree.ensure_file(name, round.to_string().as_bytes()).is_ok());
                    let _ = tree.exists(name);
                }
                // A link that was in its way was moved aside: there has to be another.
                let _ = std::fs::remove_dir_all(&link);
                let _ = std::os::unix::fs::symlink(&outside, &link);
            }
        });
        let names = std::fs::read_dir(&inside).unwrap().flatten();
        let met = names.filter(|entry| {
            entry.file_type().unwrap().is_symlink()
                && entry.file_name().to_string_lossy().contains(OLD)
        });
        let met = met.count();
        assert!(exchanges > 100 && laid > 10 && met > 10, "{exchanges} {laid} {met}");
        assert_eq!(std::fs::read(outside.join("x")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(outside.join("deep")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2);
    }

    #[test]
    fn what_lies_where_a_file_was_once_begun_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "kept").unwrap();
        for planted in [".sodium-new", ".a.new", "b"] {
            std::os::unix::fs::symlink(outside.path(), dir.path().join(planted)).unwrap();
        }
        let tree = Tree::open(dir.path(), None).unwrap();
        assert!(tree.ensure_file("a", b"one").unwrap());
        write_durably(&dir.path().join("a"), b"two").unwrap();
        write_durably(&dir.path().join("b"), b"two").unwrap();
        for written in ["a", "b"] {
            let path = dir.path().join(written);
            assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(std::fs::read(path).unwrap(), b"two");
        }
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn nothing_in_its_way_keeps_a_file_from_being_laid() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for in_the_way in ["main.sh/x", "dir/main.sh/x"] {
            std::fs::create_dir_all(at(in_the_way)).unwrap();
        }
        std::fs::write(at("file"), "mine").unwrap();
        let long = "n".repeat(255);
        std::fs::create_dir_all(at(&long).join("x")).unwrap();
        let tree = Tree::open(dir.path(), None).unwrap();
        for name in ["main.sh", "dir/main.sh", "file/main.sh", long.as_str()] {
            assert!(tree.ensure_file(name, b"spec").unwrap(), "{name}");
            assert_eq!(std::fs::read(at(name)).unwrap(), b"spec");
            assert!(!tree.ensure_file(name, b"spec").unwrap(), "{name}");
        }
        // What was there is there still, beside it.
        let names = std::fs::read_dir(dir.path()).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        let aside: Vec<String> = names.filter(|name| name.contains(".sodium-old-")).collect();
        assert_eq!(aside.len(), 3, "{aside:?}");
        let file = aside.iter().find(|name| name.starts_with("file.")).unwrap();
        assert_eq!(std::fs::read(at(file)).unwrap(), b"mine");
    }

    #[test]
    fn files_are_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), None).unwrap();
        assert!(tree.ensure_file("a/b/c.txt", b"one").unwrap());
        assert!(!tree.ensure_file("a/b/c.txt", b"one").unwrap());
        assert!(tree.ensure_file("a/b/c.txt", b"two").unwrap());
        assert!(tree.exists("a/b/c.txt"));
        assert!(!tree.exists("a/b/d.txt"));
    }
}
