//! What a program does that tries to pass its limits: for the probe, which tries it.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use crate::SysError;

/// Cpus that this process may run on.
pub fn cpu_count() -> usize {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count().max(1)
}

/// What this process has computed, in microseconds.
pub fn cpu_usec() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let all = usage.user_time() + usage.system_time();
        u64::try_from(all.num_microseconds()).unwrap_or(0)
    })
}

/// A child that does nothing, by the plain old call: the newer ones are kept from workloads.
pub fn idle_child() -> Result<u32, SysError> {
    // SAFETY: the probe has one thread, so that the child may do anything; it only waits.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Parent { child }) => Ok(child.as_raw().unsigned_abs()),
        Ok(nix::unistd::ForkResult::Child) => loop {
            nix::unistd::pause();
        },
        Err(errno) => Err(SysError::nix("fork", errno)),
    }
}

/// Ends a child of ours that was not reaped: its number cannot be anybody else's.
pub fn kill_child(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    let _ = super::process::wait_for(pid);
}

/// Whether a signal would be delivered to it. None is sent.
pub fn may_signal(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

/// From now on, only SIGKILL ends us.
pub fn ignore_requests_to_end() {
    for ask in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code of ours when it comes.
        let _ = unsafe { signal(ask, SigHandler::SigIgn) };
    }
}
