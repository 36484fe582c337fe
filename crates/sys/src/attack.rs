//! What a tenant may try against the host, each tried for real and as harmlessly as it can be: for the probe.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{ForkResult, Uid, chroot, fork, setresuid};

use crate::process::{self, Ended};
use crate::{SysError, own_ids, seccomp, spawn};

/// Something to try. `Ok`: it came through.
pub type Attack = fn() -> io::Result<()>;

/// The one that is told where to go.
pub const ABSTRACT_SOCKET: &str = "abstract socket";
/// The one that asks the system-call filter for everything that it refuses.
pub const FILTER: &str = "filter";

/// A child of ours ended with this where no error has the number.
const UNNUMBERED: i32 = 255;
/// What refuses a call, whatever it was given.
const REFUSALS: &[i32] = &[
    libc::EPERM,
    libc::EACCES,
    libc::ENOSYS,
    libc::EAFNOSUPPORT,
    libc::EPROTONOSUPPORT,
    libc::ESOCKTNOSUPPORT,
    libc::EOPNOTSUPP,
];
/// The newest kind of namespace, which some C libraries do not know.
const CLONE_NEWTIME: libc::c_int = 0x80;
/// PTRACE_SEIZE, which does not stop whom it is done to.
const PTRACE_SEIZE: usize = 0x4206;
/// Of a key ring, the session's own.
const SESSION_KEYRING: usize = usize::MAX - 2;
/// Under the x32 ABI, getpid.
const X32_GETPID: libc::c_long = 0x4000_0027;

/// By name, everything that needs no more to be known.
pub const ALL: &[(&str, Attack)] = &[
    ("become root", become_root),
    ("unshare user", || unshare(libc::CLONE_NEWUSER)),
    ("unshare mnt", || unshare(libc::CLONE_NEWNS)),
    ("unshare pid", || unshare(libc::CLONE_NEWPID)),
    ("unshare net", || unshare(libc::CLONE_NEWNET)),
    ("unshare ipc", || unshare(libc::CLONE_NEWIPC)),
    ("unshare uts", || unshare(libc::CLONE_NEWUTS)),
    ("unshare cgroup", || unshare(libc::CLONE_NEWCGROUP)),
    ("unshare time", || unshare(CLONE_NEWTIME)),
    ("setns", join_namespaces),
    ("mount", mount),
    ("chroot", || Ok(chroot("/")?)),
    ("device node", make_device),
    ("trace", trace_strangers),
    ("raw socket", || any([(2, 3, 1), (10, 3, 58), (2, 3, 255)].map(socket))),
    ("packet socket", || any([(17, 3, 0x300), (2, 10, 0x300)].map(socket))),
    // Between virtual machines and their host.
    ("vsock", || any([(40, 1, 0), (40, 2, 0)].map(socket))),
    // Sockets' diagnosis, packets' transformation, audit, netfilter, events of devices, generic.
    ("netlink", || any([4, 6, 9, 12, 15, 16].map(|protocol| socket((16, 3, protocol))))),
    // Keys, reliable datagrams, CAN, TIPC, Bluetooth, cryptography, XDP; SCTP.
    ("other sockets", || {
        let families = [15, 21, 29, 30, 31, 38, 44].map(|family| (family, 3, 0));
        any(families.into_iter().chain([(38, 5, 0), (2, 1, 132)]).map(socket))
    }),
    ("shared memory", find_shared_objects),
    ("key ring", || let_through(call(libc::SYS_keyctl, [0, SESSION_KEYRING, 0]))),
    ("bpf", || let_through(call(libc::SYS_bpf, [0, 0, 0]))),
    ("kernel module", || let_through(call(libc::SYS_init_module, [0, 0, 0]))),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [0, 0, 0]).map(drop)),
    ("io_uring", || let_through(call(libc::SYS_io_uring_setup, [1, 0, 0]))),
    ("perf events", || let_through(call(libc::SYS_perf_event_open, [0, 0, 0]))),
    ("terminal input", || let_through(call(libc::SYS_ioctl, [0, 0x5412, 0]))),
    ("x32 calls", || call(X32_GETPID, [0, 0, 0]).map(drop)),
];

/// Tries it in a child, since some change who comes through.
pub fn attempt(attack: Attack) -> Result<io::Result<()>, SysError> {
    // SAFETY: the probe has one thread, so that the child may do anything.
    match unsafe { fork() }.map_err(|errno| SysError::nix("fork", errno))? {
        ForkResult::Child => {
            let number = match attack() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(UNNUMBERED),
            };
            spawn::exit_now(number)
        }
        ForkResult::Parent { child } => {
            Ok(match process::wait_for(child.as_raw().unsigned_abs())? {
                Ended::Exited(0) => Ok(()),
                Ended::Exited(UNNUMBERED) => Err(io::Error::other("refused")),
                Ended::Exited(number) => Err(io::Error::from_raw_os_error(number)),
                Ended::Signaled(signal) => {
                    Err(io::Error::other(format!("ended by {}", process::signal_name(signal))))
                }
            })
        }
    }
}

/// Connects to a socket that has a name and no file.
pub fn reach_abstract_socket(name: &str) -> io::Result<()> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?).map(drop)
}

/// Calls that the filter should refuse and does not. Their arguments are such that the kernel does nothing.
pub fn unfiltered() -> Vec<&'static str> {
    let refused = |number| {
        let answer = call(number, [usize::MAX; 3]);
        answer.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    };
    seccomp::refused().filter(|(_, number)| !refused(*number)).map(|(name, _)| name).collect()
}

/// Processes to be seen that are nobody of ours, nor the first one of our own world.
pub fn strangers(ours: &[u32]) -> Vec<u32> {
    let me = own_ids().0;
    let others = process::all().into_iter().filter(|pid| !ours.contains(pid));
    others.filter(|pid| *pid != 1 || user_of(1) != Some(me)).collect()
}

fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn become_root() -> io::Result<()> {
    let root = Uid::from_raw(0);
    Ok(setresuid(root, root, root)?)
}

fn unshare(kind: libc::c_int) -> io::Result<()> {
    call(libc::SYS_unshare, [word(kind), 0, 0]).map(drop)
}

/// Those of the first process, whoever that is.
fn join_namespaces() -> io::Result<()> {
    any(["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"].map(|kind| {
        let namespace = File::open(format!("/proc/1/ns/{kind}"))?;
        call(libc::SYS_setns, [word(namespace.as_raw_fd()), 0, 0]).map(drop)
    }))
}

fn mount() -> io::Result<()> {
    let (none, data) = (Some("none"), None::<&str>);
    Ok(nix::mount::mount(none, "/tmp", Some("tmpfs"), MsFlags::empty(), data)?)
}

/// The kernel's memory, under a name of its own.
fn make_device() -> io::Result<()> {
    const NAME: &str = "prove-device";
    mknod(NAME, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 1))?;
    let opened = File::open(NAME);
    fs::remove_file(NAME)?;
    opened.map(drop)
}

fn trace_strangers() -> io::Result<()> {
    let ours = [std::process::id(), std::os::unix::process::parent_id()];
    any(strangers(&ours).into_iter().map(|pid| {
        let pid = usize::try_from(pid).unwrap_or(0);
        call(libc::SYS_ptrace, [PTRACE_SEIZE, pid, 0]).map(drop)
    }))
}

/// What System V has for two processes to talk: ours has made none.
fn find_shared_objects() -> io::Result<()> {
    any(["shm", "sem", "msg"].map(|kind| {
        let listed = fs::read_to_string(format!("/proc/sysvipc/{kind}"))?;
        // Below the names of the columns.
        let found = listed.lines().count() > 1;
        if found { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    }))
}

fn socket((family, kind, protocol): (usize, usize, usize)) -> io::Result<()> {
    call(libc::SYS_socket, [family, kind, protocol]).map(drop)
}

/// The first that comes through, else why the last did not.
fn any(tries: impl IntoIterator<Item = io::Result<()>>) -> io::Result<()> {
    let mut last = Err(io::Error::from_raw_os_error(libc::ESRCH));
    for one in tries {
        last = one;
        if last.is_ok() {
            break;
        }
    }
    last
}

/// What is refused for what it was given has come through.
fn let_through(answer: io::Result<usize>) -> io::Result<()> {
    match answer {
        Err(error) if error.raw_os_error().is_some_and(|number| REFUSALS.contains(&number)) => {
            Err(error)
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn word(number: libc::c_int) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn call(number: libc::c_long, [a, b, c]: [usize; 3]) -> io::Result<usize> {
    // Those that take more find nothing there.
    const NONE: usize = 0;
    // SAFETY: callers give integers, and for pointers null or what is nobody's address: the kernel reads and writes
    // no memory of ours.
    let ret = unsafe { libc::syscall(number, a, b, c, NONE, NONE, NONE) };
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}
