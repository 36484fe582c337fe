//! Turning this process into another one, step by step.
//!
//! Only for single-threaded processes, which the shim is: between fork and exec its child may then
//! run ordinary code. Each function is one step; the order is the caller's business, because most
//! steps give up the right to do an earlier one.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use crate::SysError;

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Fork {
    Child,
    Parent { pid: u32 },
}

/// Forks; the child starts its life inside the cgroup, if one is given.
///
/// CLONE_INTO_CGROUP costs nothing, while moving a process by a write to `cgroup.procs` waits
/// for a grace period of the kernel, some 8 ms.
pub fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> Result<Fork, SysError> {
    let mut args =
        CloneArgs { exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()), ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().unsigned_abs());
    }
    clone(&args)
}

/// Forks the first process of a new pid namespace, with mounts, IPC and a host name of its own as well, inside the
/// cgroup if one is given.
pub fn fork_first(cgroup: Option<BorrowedFd<'_>>) -> Result<Fork, SysError> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let mut args = CloneArgs {
        flags: u64::from(flags.unsigned_abs()),
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().unsigned_abs());
    }
    clone(&args)
}

/// Forks a sibling: a child of our parent, which reaps it.
pub fn fork_beside() -> Result<Fork, SysError> {
    // The parent is told with the signal that it asked for when it made us.
    let flags = u64::from(libc::CLONE_PARENT.unsigned_abs());
    clone(&CloneArgs { flags, ..CloneArgs::default() })
}

fn clone(args: &CloneArgs) -> Result<Fork, SysError> {
    // SAFETY: `args` is a valid clone_args of the size passed. Without CLONE_VM the child gets a
    // copy of our memory and returns here like fork's; we have one thread, so no lock can be held
    // by a thread that the child lacks.
    let ret = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_ref(args), size_of::<CloneArgs>())
    };
    match u32::try_from(ret) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) => Ok(Fork::Parent { pid }),
        Err(_) => Err(SysError::last("clone3")),
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, version 2.
#[derive(Debug, Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A session of its own, without a controlling terminal.
pub fn new_session() -> Result<(), SysError> {
    nix::unistd::setsid().map(drop).map_err(|errno| SysError::nix("setsid", errno))
}

/// Puts `fd` at exactly `number`, to be inherited.
pub fn place_fd(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), SysError> {
    if fd.as_raw_fd() == number {
        return set_cloexec(fd, false);
    }
    // SAFETY: dup2 takes two integers; `fd` is open, and whatever sits at `number` in this child
    // is meant to be replaced.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if ret < 0 { Err(SysError::last(format!("dup2({number})"))) } else { Ok(()) }
}

/// The same descriptor at a number above those that [`place_fd`] gives away; close-on-exec.
pub fn move_high(fd: OwnedFd) -> Result<OwnedFd, SysError> {
    use nix::fcntl::{FcntlArg, fcntl};
    let number = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_FD))
        .map_err(|errno| SysError::nix("fcntl(F_DUPFD_CLOEXEC)", errno))?;
    // SAFETY: fcntl succeeded, so `number` is open; it was made just now, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

const HIGH_FD: RawFd = 32;

/// Whether an exec closes `fd`.
pub fn set_cloexec(fd: BorrowedFd<'_>, cloexec: bool) -> Result<(), SysError> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = if cloexec { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags))
        .map(drop)
        .map_err(|errno| SysError::nix("fcntl(F_SETFD)", errno))
}

/// Marks every descriptor from `first` on to be closed by exec. What leaks in leaks no further.
pub fn cloexec_from(first: u32) -> Result<(), SysError> {
    // SAFETY: close_range takes three integers; with CLOSE_RANGE_CLOEXEC nothing is closed now,
    // so no owned descriptor is pulled away from under its owner.
    let ret =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if ret < 0 { Err(SysError::last(format!("close_range({first}..)"))) } else { Ok(()) }
}

/// Closes every descriptor from `first` on: what a process was given by accident it does not pass on, not even
/// to those it forks. Only for a process that has opened nothing of its own yet.
pub fn close_from(first: u32) -> Result<(), SysError> {
    // SAFETY: close_range takes three integers. The caller has opened nothing, so no owned descriptor is
    // pulled away from under its owner.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if ret < 0 { Err(SysError::last(format!("close_range({first}..)"))) } else { Ok(()) }
}

/// Closes every descriptor from 3 on but these, whatever they are and whoever opened them.
///
/// In a child that is about to leave the host's root: what it still holds open is a way back. Nothing that owns one of
/// those that are closed may be used or dropped any more, which is why this is for children that end by exec.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> Result<(), SysError> {
    let mut numbers: Vec<u32> =
        kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).filter(|number| *number > 2).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers.into_iter().map(Some).chain([None]) {
        let last = number.map_or(u32::MAX, |number| number.saturating_sub(1));
        if first <= last {
            // SAFETY: close_range takes three integers. See above for what becomes of those who own them.
            let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if ret < 0 {
                return Err(SysError::last(format!("close_range({first}..={last})")));
            }
        }
        first = number.map_or(u32::MAX, |number| number.saturating_add(1));
    }
    Ok(())
}

/// Waits for nothing until it is killed; whatever is left to it is reaped by the kernel.
pub fn idle_forever() -> ! {
    let _ = crate::process::reap_unseen(true);
    loop {
        nix::unistd::pause();
    }
}

/// Sets a limit, soft and hard. `name` is one of those in [`Limit`].
pub fn limit(what: Limit, value: u64) -> Result<(), SysError> {
    let resource = match what {
        Limit::OpenFiles => Resource::RLIMIT_NOFILE,
        Limit::CoreBytes => Resource::RLIMIT_CORE,
        Limit::Processes => Resource::RLIMIT_NPROC,
    };
    setrlimit(resource, value, value)
        .map_err(|errno| SysError::nix(format!("setrlimit({what:?}, {value})"), errno))
}

/// The resource limits we set.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    OpenFiles,
    CoreBytes,
    Processes,
}

/// The hard limit on open files that this process could hand on.
pub fn open_files_max() -> u64 {
    nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)
}

/// Files get the mode that whoever makes them says, whatever the shell that started us would have closed: sandboxes
/// look at some. What is secret says so.
pub fn forget_umask() {
    nix::sys::stat::umask(Mode::S_IWGRP | Mode::S_IWOTH);
}

/// Lets this process itself open as many files as it may hand on.
pub fn raise_open_files() {
    let hard = open_files_max();
    // A refusal leaves the limit as it was, which is what there is to work with.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
}

/// Sets the allocator up for a daemon of few busy threads: two arenas are enough, and buffers of a
/// console's size are kept instead of being mapped, faulted in and unmapped for every frame.
pub fn tune_allocator() {
    const KEPT_BYTES: i32 = 1 << 20;
    let settings = [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, KEPT_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
    ];
    for (what, value) in settings {
        // SAFETY: mallopt takes two integers; it is called before any thread is started.
        let _ = unsafe { libc::mallopt(what, value) };
    }
}

/// How many cpus this process may use.
pub fn cpus() -> u64 {
    use nix::sched::{CpuSet, sched_getaffinity};
    let Ok(allowed) = sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return 1 };
    (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).map(|_| 1).sum()
}

/// Becomes another user for good, with no supplementary groups.
pub fn become_user(uid: u32, gid: u32) -> Result<(), SysError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setgroups(&[]).map_err(|errno| SysError::nix("setgroups([])", errno))?;
    nix::unistd::setresgid(group, group, group)
        .map_err(|errno| SysError::nix(format!("setresgid({gid})"), errno))?;
    nix::unistd::setresuid(user, user, user)
        .map_err(|errno| SysError::nix(format!("setresuid({uid})"), errno))
}

/// No exec can gain privileges any more.
pub fn no_new_privileges() -> Result<(), SysError> {
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| SysError::nix("prctl(PR_SET_NO_NEW_PRIVS)", errno))
}

/// Dies when the parent dies. The parent has one thread, so this means the process.
///
/// `parent` is who it was at the fork; if it is gone already the signal will never come.
pub fn die_with_parent(parent: u32) -> Result<(), SysError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| SysError::nix("prctl(PR_SET_PDEATHSIG)", errno))?;
    if std::os::unix::process::parent_id() == parent {
        return Ok(());
    }
    Err(SysError::nix("getppid", nix::errno::Errno::ESRCH))
}

/// Dies when the parent dies, also where the parent is in another pid namespace and cannot be named.
/// `alive` is a pipe to it: broken already, the signal will never come.
pub fn die_with_parent_behind(alive: BorrowedFd<'_>) -> Result<(), SysError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| SysError::nix("prctl(PR_SET_PDEATHSIG)", errno))?;
    if crate::poll::is_broken(alive)? {
        return Err(SysError::nix("poll", nix::errno::Errno::ESRCH));
    }
    Ok(())
}

/// Nothing blocked and nothing ignored, whatever we or whoever started the daemon did to signals: what
/// is ignored stays so through an exec, and a shell without job control ignores SIGINT for us.
pub fn reset_signals() -> Result<(), SysError> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|one| !matches!(one, Signal::SIGKILL | Signal::SIGSTOP))
    {
        // SAFETY: the default action runs no code of ours, so there is no handler that could misbehave.
        unsafe { nix::sys::signal::sigaction(signal, &action) }
            .map_err(|errno| SysError::nix(format!("sigaction({signal})"), errno))?;
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|errno| SysError::nix("sigprocmask", errno))
}

/// So much of a program's name is said of one that could not be run.
const NAMED_CHARS_MAX: usize = 200;

/// Replaces this process. Returns only if it could not.
pub fn exec(program: &str, args: &[String], env: &[(String, String)]) -> SysError {
    let text = |value: &str| CString::new(value).unwrap_or_default();
    let path = text(program);
    let args: Vec<CString> = args.iter().map(|arg| text(arg)).collect();
    let env: Vec<CString> =
        env.iter().map(|(key, value)| text(&format!("{key}={value}"))).collect();
    let Err(errno) = nix::unistd::execve(&path, &args, &env);
    let named: String = program.chars().take(NAMED_CHARS_MAX).collect();
    SysError::nix(format!("exec {named}"), errno)
}

/// Replaces this process with a program that is looked for as a shell would: a name with a slash as it
/// stands, any other in the directories of PATH. Returns only if it could not.
pub fn exec_found(args: &[String], env: &[(String, String)]) -> SysError {
    let name = args.first().map_or("", String::as_str);
    let path = env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value.as_str());
    if name.contains('/') || path.is_empty() {
        return exec(name, args, env);
    }
    let mut refused = None;
    for dir in path.split(':') {
        let error = exec(&format!("{dir}/{name}"), args, env);
        if !matches!(error.errno(), libc::ENOENT | libc::ENOTDIR) {
            refused.get_or_insert(error);
        }
    }
    refused.unwrap_or_else(|| SysError::nix(format!("exec {name}"), nix::errno::Errno::ENOENT))
}

/// Ends this process without running anything more of it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return; no destructor is skipped that matters,
    // since this is a forked child that owns nothing.
    unsafe { libc::_exit(code) }
}
