//! Taking a directory tree and attaching it in the mounts of another process, with other owners than
//! it has on disk.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{SysError, namespace, poll, process, spawn};

// Of linux/mount.h.
const OPEN_TREE_CLONE: u32 = 1;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// Nobody can write to, find a device in, or gain a user from what is mounted at `at` and below it.
pub(super) fn make_read_only(at: &Path) -> Result<(), SysError> {
    let text = CString::new(at.as_os_str().as_bytes()).unwrap_or_default();
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: mount_setattr reads a string that ends in zero and a mount_attr of the size passed; both outlive
    // the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            text.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if ret < 0 {
        return Err(SysError::last(format!("mount_setattr {}", at.display())));
    }
    Ok(())
}

/// A directory tree, held apart from where it is mounted, to be attached elsewhere.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// A copy of what is at `path`, without devices and set-uid programs. Whoever it belongs to on disk
    /// (`from`, a user and a group of the same number) is another one (`to`) wherever it is attached.
    pub fn open(path: &Path, ids: &[(u32, u32)]) -> Result<Self, SysError> {
        let text = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
        // SAFETY: open_tree reads a string that ends in zero, which `text` is, and takes integers.
        let ret =
            unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, text.as_ptr(), flags) };
        let fd = RawFd::try_from(ret).unwrap_or(-1);
        if fd < 0 {
            return Err(SysError::last(format!("open_tree {}", path.display())));
        }
        // SAFETY: the call succeeded, so `fd` is a descriptor made just now, which nothing else owns.
        let tree = unsafe { OwnedFd::from_raw_fd(fd) };
        let users = mapped_users(ids)?;
        let attributes = MountAttributes {
            set: MOUNT_ATTR_IDMAP | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
            clear: 0,
            propagation: 0,
            user_namespace: u64::from(users.as_raw_fd().unsigned_abs()),
        };
        let (empty, size) = (c"", size_of::<MountAttributes>());
        // SAFETY: mount_setattr reads an empty string and a mount_attr of the size passed; both, and the
        // two descriptors, outlive the call.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                empty.as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size,
            )
        };
        if ret < 0 { Err(SysError::last("mount_setattr(IDMAP)")) } else { Ok(Self(tree)) }
    }

    /// Attaches it at a path of what process `pid` sees. Afterwards this process sees that, too: only
    /// for one that ends next.
    pub fn attach_in(self, pid: u32, at: &Path) -> Result<(), SysError> {
        let open = |name: &str, flags: i32| {
            let path = format!("/proc/{pid}/{name}");
            let opened = File::options().read(true).custom_flags(flags).open(&path);
            opened.map_err(|source| SysError::io("open", Path::new(&path), source))
        };
        let root = open("root", libc::O_PATH | libc::O_DIRECTORY)?;
        namespace::enter_mounts(open("ns/mnt", 0)?.as_fd())?;
        let relative = at.strip_prefix("/").unwrap_or(at);
        let target = nix::fcntl::openat(
            &root,
            relative,
            nix::fcntl::OFlag::O_PATH
                | nix::fcntl::OFlag::O_DIRECTORY
                | nix::fcntl::OFlag::O_NOFOLLOW,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(|errno| SysError::nix(format!("open {} inside", at.display()), errno))?;
        let (empty, flags) = (c"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
        // SAFETY: move_mount reads two empty strings; they and both descriptors outlive the call.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                empty.as_ptr(),
                target.as_raw_fd(),
                empty.as_ptr(),
                flags,
            )
        };
        if ret < 0 { Err(SysError::last(format!("move_mount {}", at.display()))) } else { Ok(()) }
    }
}

/// `struct mount_attr`.
#[derive(Debug)]
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A user namespace that is nothing but its map. A process has to be born for it, and ends again.
fn mapped_users(ids: &[(u32, u32)]) -> Result<OwnedFd, SysError> {
    let (ready, tell) = poll::pipe()?;
    let (alive, hold) = poll::pipe()?;
    match spawn::fork_into(None)? {
        spawn::Fork::Child => {
            drop((ready, hold));
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok();
            let _ = File::from(tell).write_all(&[u8::from(made)]);
            // Until whoever made us has what it wants.
            let _ = File::from(alive).read(&mut [0]);
            spawn::exit_now(0)
        }
        spawn::Fork::Parent { pid } => {
            drop((tell, alive));
            let namespace = map_users(pid, ready, ids);
            drop(hold);
            process::wait_for(pid)?;
            namespace
        }
    }
}

fn map_users(pid: u32, ready: OwnedFd, ids: &[(u32, u32)]) -> Result<OwnedFd, SysError> {
    let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let mut made = [0];
    let told = File::from(ready).read(&mut made);
    if !matches!(told, Ok(1)) || made[0] != 1 {
        return Err(SysError::nix("unshare(CLONE_NEWUSER)", nix::errno::Errno::EPERM));
    }
    let lines: String = ids.iter().map(|(from, to)| format!("{from} {to} 1\n")).collect();
    for name in ["uid_map", "gid_map"] {
        let path = path(name);
        std::fs::write(&path, &lines).map_err(|source| SysError::io("write", &path, source))?;
    }
    let path = path("ns/user");
    let opened = File::open(&path).map_err(|source| SysError::io("open", &path, source))?;
    Ok(opened.into())
}
