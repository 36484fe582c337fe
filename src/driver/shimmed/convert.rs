//! Between the shim's words and the model's.

use std::os::fd::AsFd;
use std::path::Path;

use crate::model::{ExitKind, ExitRecord, Iid, Time};
use crate::shim::exit::{Cause, Exit};
use crate::sys::{SysError, lock, process};

pub(super) fn exit(exit: Exit, iid: &Iid) -> ExitRecord {
    let name = |signal: Option<i32>| signal.map(process::signal_name);
    let kind = match exit.cause {
        Cause::Exited { code } => ExitKind::Exited { code },
        Cause::Signaled { signal } => ExitKind::Signaled { signal: process::signal_name(signal) },
        Cause::Oom { code, signal } => ExitKind::Oom { code, signal: name(signal) },
        Cause::Timeout { code, signal } => ExitKind::Timeout { code, signal: name(signal) },
        Cause::StartFailed { stage, message } => ExitKind::StartFailed { stage, message },
    };
    ExitRecord {
        iid: iid.clone(),
        kind,
        started_at: exit.started_at_ms.map(Time),
        ended_at: Time(exit.ended_at_ms),
        reason: exit.reason,
        oom_kills: exit.usage.oom_kills,
        memory_peak_bytes: exit.usage.memory_peak_bytes,
        cpu_usec: exit.usage.cpu_usec,
        throttled_usec: exit.usage.throttled_usec,
        hint: exit.hint,
    }
}

/// Specs name only signals that exist; SIGTERM stands in for one from another release.
pub(super) fn signal_number(name: &str) -> i32 {
    process::signal_number(name).unwrap_or(15)
}

/// Kills the process that noted itself in the lock, if it is the shim: nothing else has the run
/// directory as its working directory. The pid is only where to look; the kill goes through a handle
/// that was opened before the look. Returns whether there was one.
pub(super) fn kill_holder(lock: &Path, run_dir: &Path) -> Result<bool, SysError> {
    let Ok(pid) = lock::holder(lock).parse::<u32>() else { return Ok(false) };
    let Ok(pidfd) = process::open_pidfd(pid) else { return Ok(false) };
    let there = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|dir| dir == run_dir);
    if there {
        process::signal(pidfd.as_fd(), 9)?;
    }
    Ok(there)
}
