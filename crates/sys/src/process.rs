//! Processes: reaping, signalling, and what /proc says of them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

use crate::{SysError, read_small};

/// How often it is looked whether a program that is waited for has ended.
const WAIT_PAUSE: Duration = Duration::from_millis(2);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

/// A handle on process `pid`. Stays with that process even after the id is reused.
pub fn open_pidfd(pid: u32) -> Result<OwnedFd, SysError> {
    // SAFETY: pidfd_open takes two integers and reads no memory of ours. Any value is allowed; a
    // bad pid makes it return -1, which is checked below.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if ret < 0 {
        return Err(SysError::last(format!("pidfd_open({pid})")));
    }
    let fd = RawFd::try_from(ret).expect("the kernel's descriptors fit in RawFd");
    // SAFETY: the call above succeeded, so `fd` is open; it was created just now, so nothing else
    // owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals exactly the process behind the handle. A process that is gone is not an error.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), SysError> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd is open for the call's duration; a null siginfo asks the kernel to fill in
    // what kill(2) would; flags are zero as required.
    let ret =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) };
    if ret == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) {
        return Ok(());
    }
    Err(SysError::last(format!("pidfd_send_signal({signal})")))
}

/// Reaps one ended child, if there is one.
pub fn reap_any() -> Option<(u32, Ended)> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                return Some((pid.as_raw().unsigned_abs(), Ended::Exited(code)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Some((pid.as_raw().unsigned_abs(), Ended::Signaled(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            // Stopped and continued are not asked for; a signal in between only means: again.
            Ok(_) | Err(_) => (),
        }
    }
}

/// How a program that we started has ended. `None`: it took too long and was killed.
pub fn wait_within(child: &mut Child, longest: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + longest;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(WAIT_PAUSE);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// How a child has ended, if it has. It is not reaped: its number stays its own.
pub fn has_ended(pid: u32) -> Option<Ended> {
    let child = Id::Pid(nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?));
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    ended(waitid(child, flags).ok()?)
}

/// Reaps this child, if it has ended.
pub fn reap(pid: u32) -> Option<Ended> {
    let child = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    ended(waitpid(child, Some(WaitPidFlag::WNOHANG)).ok()?)
}

fn ended(status: WaitStatus) -> Option<Ended> {
    if let WaitStatus::Exited(_, code) = status {
        return Some(Ended::Exited(code));
    }
    if let WaitStatus::Signaled(_, signal, _) = status {
        return Some(Ended::Signaled(signal as i32));
    }
    None
}

/// Reaps this child, whenever it ends.
pub fn wait_for(pid: u32) -> Result<Ended, SysError> {
    let child = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(-1));
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Ended::Exited(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Ended::Signaled(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => (),
            Err(errno) => return Err(SysError::nix(format!("waitpid({pid})"), errno)),
        }
    }
}

/// How the process behind the handle ended, also when it was not our child and was reaped by
/// another. `None` while it lives, and on kernels before 6.15, which do not tell.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<Ended> {
    let mut about = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: `about` is a pidfd_info of the size that is part of the request's number; the kernel
    // writes no more than that, and it outlives the call.
    let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut about) };
    if ret < 0 || about.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let status = about.exit_code;
    Some(match libc::WTERMSIG(status) {
        0 => Ended::Exited(libc::WEXITSTATUS(status)),
        signal => Ended::Signaled(signal),
    })
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with the structure's first published size, 64 bytes.
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;

#[derive(Debug, Default)]
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// Becomes the parent of every descendant whose own parent ends.
pub fn become_subreaper() -> Result<(), SysError> {
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| SysError::nix("prctl(PR_SET_CHILD_SUBREAPER)", errno))
}

/// Whether children that end leave nothing to reap. A program that this process becomes inherits it.
pub fn reap_unseen(unseen: bool) -> Result<(), SysError> {
    let handler = if unseen { SigHandler::SigIgn } else { SigHandler::SigDfl };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither action runs code of ours, so there is no handler that could misbehave.
    unsafe { sigaction(Signal::SIGCHLD, &action) }
        .map(drop)
        .map_err(|errno| SysError::nix("sigaction(SIGCHLD)", errno))
}

/// Direct children of a process, oldest first. Empty when it is gone.
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = read_small(Path::new(&path)).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// What a process is numbered in the innermost of its pid namespaces.
pub fn inner_pid(pid: u32) -> Option<u32> {
    let status = read_small(Path::new(&format!("/proc/{pid}/status"))).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

/// How much cpu a process has used, with all the threads it ever had. `None` when it is gone.
pub fn cpu_usec(pid: u32) -> Option<u64> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let clock = nix::time::clock_getcpuclockid(pid).ok()?;
    let used = std::time::Duration::from(nix::time::clock_gettime(clock).ok()?);
    u64::try_from(used.as_micros()).ok()
}

/// A process that makes threads faster than in so many rounds is not waited for.
const SLACKEN_ROUNDS_MAX: usize = 8;

/// Lets timers of a process be late by so much, and those of whatever it starts from then on, so that the kernel can have
/// several come at once.
pub fn slacken_timers(pid: u32, nanoseconds: u64) {
    let mut known = std::collections::BTreeSet::new();
    // Threads that appear meanwhile were made by a thread that was slackened, or by one that was not.
    for _ in 0..SLACKEN_ROUNDS_MAX {
        let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let tids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let fresh: Vec<u32> = tids.filter(|tid| known.insert(*tid)).collect();
        if fresh.is_empty() {
            return;
        }
        for tid in fresh {
            // Gone again, or not ours to change: then its timers come as they would have.
            let _ = fs::write(format!("/proc/{tid}/timerslack_ns"), nanoseconds.to_string());
        }
    }
}

/// What a process was started with, its own name first.
pub fn arguments(pid: u32) -> Vec<String> {
    let line = read_small(Path::new(&format!("/proc/{pid}/cmdline"))).unwrap_or_default();
    line.split_terminator('\0').map(str::to_owned).collect()
}

/// Every process that there is now.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What the kernel calls a process. `None` when it is gone.
pub fn name(pid: u32) -> Option<String> {
    let name = read_small(Path::new(&format!("/proc/{pid}/comm"))).ok()?;
    Some(name.trim_end().to_owned())
}

/// What a process has open, by the names that the kernel knows.
pub fn open_files(pid: u32) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    // One by one: how many there are, and how long each is called, is the tenant's to say.
    targets.map(|target| target.to_string_lossy().into_owned())
}

/// The session a process is in, named by the process that began it.
pub fn session(pid: u32) -> Option<u32> {
    stat(pid, 3)
}

/// Whether a process descends from one that works in this directory.
pub fn is_below_one_in(pid: u32, dir: &Path) -> bool {
    let mut ancestors =
        std::iter::successors(Some(pid), |pid| stat(*pid, 1).filter(|pid| *pid > 0));
    ancestors.any(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|found| found == dir))
}

/// A number of /proc/PID/stat by its place behind the name, which may contain anything: state, parent, group,
/// session.
fn stat(pid: u32, place: usize) -> Option<u32> {
    let stat = read_small(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(place)?.parse().ok()
}

/// The program a process runs; `None` when it is gone or not ours to see.
pub fn program(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The number a name like `SIGTERM` or `TERM` stands for.
pub fn signal_number(name: &str) -> Option<i32> {
    let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}

/// The name of a signal's number: `SIGTERM`.
pub fn signal_name(number: i32) -> String {
    Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn failure_names_the_call_and_keeps_the_cause() {
        let error = open_pidfd(u32::MAX).unwrap_err();
        assert_eq!(error.to_string(), "pidfd_open(4294967295)");
        assert!(matches!(error.source.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)));
        open_pidfd(std::process::id()).unwrap();
    }

    #[test]
    fn a_handle_tells_how_its_process_ended() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = open_pidfd(child.id()).unwrap();
        child.wait().unwrap();
        // Kernels before 6.15 do not tell, which is an answer too.
        assert!(matches!(exit_status(pidfd.as_fd()), Some(Ended::Exited(7)) | None));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("INT"), Some(2));
        assert_eq!(signal_number("SIGNOPE"), None);
        assert_eq!(signal_name(9), "SIGKILL");
    }

    #[test]
    fn outside_of_any_namespace_a_process_has_one_number() {
        assert_eq!(inner_pid(std::process::id()), Some(std::process::id()));
        assert_eq!(inner_pid(u32::MAX), None);
    }
}
