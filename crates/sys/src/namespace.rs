//! Entering the namespaces of another process, and giving up what that brings.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::spawn::Fork;
use crate::{SysError, lock, process};

/// Everything of a process that can be entered but its user namespace, which has a turn of its own.
const ALL_BUT_USER: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// `_IO(0xb7, 2)`: the user namespace around this one.
const NS_GET_PARENT: libc::c_ulong = 0xB702;

/// `struct __user_cap_header_struct` of version 3, and two words of each set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// EX_OSERR.
const EXIT_LOST: i32 = 71;
/// Beyond the highest capability that any kernel has.
const CAPABILITY_COUNT: libc::c_ulong = 64;

/// A process whose namespaces can be entered. It is the one that was looked at, or the entry fails.
#[derive(Debug)]
pub struct Entrance {
    process: OwnedFd,
    /// `None`: it is in the host's, and its other namespaces belong to that.
    user: Option<OwnedFd>,
}

impl Entrance {
    /// Finds the namespaces of `pid`, that of users among them if it has one of its own.
    pub fn find(pid: u32, own_users: bool) -> Result<Self, SysError> {
        let process = process::open_pidfd(pid)?;
        let path = std::path::PathBuf::from(format!("/proc/{pid}/ns/user"));
        let open = || File::open(&path).map_err(|source| SysError::io("open", &path, source));
        let user = own_users.then(open).transpose()?.map(OwnedFd::from);
        Ok(Self { process, user })
    }

    /// What it takes to enter.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.process), self.user.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Enters all namespaces but the user's; children are born in the pid namespace. Without root this
    /// takes a stop in the user namespace around the process's own, to which the others belong.
    pub fn enter_all_but_user(&self) -> Result<(), SysError> {
        if let Some(user) = self.user.as_ref().filter(|_| !crate::is_root()) {
            set_namespace(parent(user)?.as_raw_fd(), libc::CLONE_NEWUSER)?;
        }
        set_namespace(self.process.as_raw_fd(), ALL_BUT_USER)
    }

    /// Enters the user namespace, if there is one. All capabilities in there come with it.
    pub fn enter_user(&self) -> Result<(), SysError> {
        let enter = |user: &OwnedFd| set_namespace(user.as_raw_fd(), libc::CLONE_NEWUSER);
        self.user.as_ref().map_or(Ok(()), enter)
    }
}

fn parent(user: &OwnedFd) -> Result<OwnedFd, SysError> {
    // SAFETY: the request takes no argument; `user` is open for the call's duration.
    let ret = unsafe { libc::ioctl(user.as_raw_fd(), NS_GET_PARENT) };
    if ret < 0 {
        return Err(SysError::last("ioctl(NS_GET_PARENT)"));
    }
    // SAFETY: the call succeeded, so `ret` is a descriptor made just now, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

/// The namespaces of a process that were made for it.
#[derive(Debug)]
pub struct Found(OwnedFd);

impl Found {
    pub fn of(pid: u32) -> Result<Self, SysError> {
        process::open_pidfd(pid).map(Self)
    }

    /// Forks into the pid namespace; this process itself stays where it is.
    pub fn bear(&self, fork: impl FnOnce() -> Result<Fork, SysError>) -> Result<Fork, SysError> {
        let path = std::path::Path::new("/proc/self/ns/pid");
        let own = File::open(path).map_err(|source| SysError::io("open", path, source))?;
        set_namespace(self.0.as_raw_fd(), libc::CLONE_NEWPID)?;
        let forked = fork();
        if !matches!(forked, Ok(Fork::Child)) {
            set_namespace(own.as_raw_fd(), libc::CLONE_NEWPID)?;
        }
        forked
    }

    /// Enters the others.
    pub fn enter(&self) -> Result<(), SysError> {
        let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        set_namespace(self.0.as_raw_fd(), kinds)
    }
}

/// A network with nothing but a loopback in it, in which nobody is. To make one takes longer than all else that a
/// start asks of the kernel, so it may be made before it is known for whom.
#[derive(Debug)]
pub struct Network(OwnedFd);

impl Network {
    /// Leaves the calling process, which has one thread, where it was; or ends it.
    pub fn make() -> Result<Self, SysError> {
        let path = std::path::Path::new("/proc/self/ns/net");
        let open = || File::open(path).map_err(|source| SysError::io("open", path, source));
        let own = open()?;
        // SAFETY: unshare takes one integer.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(SysError::last("unshare(CLONE_NEWNET)"));
        }
        let made = raise_loopback().and_then(|()| open());
        if set_namespace(own.as_raw_fd(), libc::CLONE_NEWNET).is_err() {
            // What is done next would be done in the wrong place.
            crate::spawn::exit_now(EXIT_LOST);
        }
        made.map(|file| Self(file.into()))
    }

    pub fn enter(&self) -> Result<(), SysError> {
        set_namespace(self.0.as_raw_fd(), libc::CLONE_NEWNET)
    }
}

/// Comes to be in the network of whoever holds the lock on `path`.
pub fn enter_network_of_holder(path: &std::path::Path) -> Result<(), SysError> {
    let nobody = || SysError::io("find the holder of", path, std::io::ErrorKind::NotFound.into());
    let pid: u32 = lock::holder(path).parse().map_err(|_| nobody())?;
    let network = std::path::PathBuf::from(format!("/proc/{pid}/ns/net"));
    let found = File::open(&network).map_err(|source| SysError::io("open", &network, source))?;
    // Opened first, asked then: whoever has had the lock all the time is who had that number.
    if !lock::is_held(path)? || lock::holder(path) != pid.to_string() {
        return Err(nobody());
    }
    set_namespace(found.as_raw_fd(), libc::CLONE_NEWNET)
}

/// Comes to see the mounts of another mount namespace.
pub fn enter_mounts(namespace: BorrowedFd<'_>) -> Result<(), SysError> {
    set_namespace(namespace.as_raw_fd(), libc::CLONE_NEWNS)
}

fn set_namespace(fd: RawFd, kinds: i32) -> Result<(), SysError> {
    // SAFETY: setns takes two integers; the descriptors passed are open.
    let ret = unsafe { libc::setns(fd, kinds) };
    if ret < 0 { Err(SysError::last(format!("setns({kinds:#x})"))) } else { Ok(()) }
}

/// Keeps everybody without the right to debug on this host out of our memory and descriptors, in
/// whatever namespace we come to be. Holds until the next exec.
pub fn hide() -> Result<(), SysError> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| SysError::nix("prctl(PR_SET_DUMPABLE)", errno))
}

/// Has the loopback of a network of our own work.
fn raise_loopback() -> Result<(), SysError> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)
        .map_err(|errno| SysError::nix("socket(AF_INET)", errno))?;
    let mut request = InterfaceFlags { name: [0; 16], flags: [0; 24] };
    request.name[..2].copy_from_slice(b"lo");
    let flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    request.flags[..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which `request` is laid out as; it outlives the call.
    let ret =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if ret < 0 { Err(SysError::last("ioctl(SIOCSIFFLAGS, lo)")) } else { Ok(()) }
}

/// `struct ifreq` with flags in it.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: [u8; 24],
}

/// Names the host that this process sees.
pub fn set_hostname(name: &str) -> Result<(), SysError> {
    nix::unistd::sethostname(name).map_err(|errno| SysError::nix("sethostname", errno))
}

/// No exec can gain a capability any more.
pub fn drop_bounding_capabilities() {
    for capability in 0..CAPABILITY_COUNT {
        // SAFETY: this prctl takes integers. One that the kernel does not know is refused with EINVAL,
        // which ends the list; without the right to change the set, the set below is still emptied.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
}

/// Gives up every capability, for this process and whatever it becomes.
pub fn drop_capabilities() -> Result<(), SysError> {
    drop_bounding_capabilities();
    // SAFETY: this prctl takes integers.
    let cleared =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // gVisor's kernel has no ambient set, and refuses even to clear it.
    if cleared < 0 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
        return Err(SysError::last("prctl(PR_CAP_AMBIENT)"));
    }
    let header = [CAPABILITY_VERSION, 0];
    let nothing = [0_u32; 6];
    // SAFETY: version 3 reads a header of two words and six words of sets, which these arrays are; both
    // outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) };
    if ret < 0 { Err(SysError::last("capset")) } else { Ok(()) }
}
