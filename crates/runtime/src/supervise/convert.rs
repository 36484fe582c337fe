//! Between the shim's words and the model's.

use std::os::fd::AsFd;
use std::path::Path;

use sodium_model::text::bounded;
use sodium_model::{Counted, Counters, ExitKind, ExitRecord, Iid, StopReason, Time};
use sodium_shim::exit::{Cause, Exit};
use sodium_sys::cgroup::Usage;
use sodium_sys::{SysError, lock, process};

/// Bytes of a hint: it names system calls as a runtime spelt them.
const HINT_BYTES_MAX: usize = 1024;

/// What the kernel calls shims, and the server that they are forked from.
const SHIM: &str = "sodium-shim";

/// The runtime's `own` processes are none of the sandbox's.
pub(crate) fn exit(exit: Exit, iid: &Iid, own: u64) -> ExitRecord {
    let name = |signal: Option<i32>| signal.map(process::signal_name);
    // For a count of its files.
    let over = exit.reason.as_deref() == Some(StopReason::Disk.as_str());
    let kind = match exit.cause {
        Cause::Exited { code } if over => ExitKind::Disk { code: Some(code), signal: None },
        Cause::Signaled { signal } if over => {
            ExitKind::Disk { code: None, signal: name(Some(signal)) }
        }
        Cause::Exited { code } => ExitKind::Exited { code },
        Cause::Signaled { signal } => ExitKind::Signaled { signal: process::signal_name(signal) },
        Cause::Oom { code, signal } => ExitKind::Oom { code, signal: name(signal) },
        Cause::Timeout { code, signal } => ExitKind::Timeout { code, signal: name(signal) },
        Cause::StartFailed { stage, message } => ExitKind::start_failed(&stage, message),
    };
    let (before, after) = (counted(&exit.before), counted(&exit.usage));
    ExitRecord {
        iid: iid.clone(),
        kind,
        started_at: exit.started_at_ms.map(Time),
        ended_at: Time(exit.ended_at_ms),
        reason: exit.reason,
        oom_kills: after.oom_kills.saturating_sub(before.oom_kills),
        memory_peak_bytes: exit.usage.memory_peak_bytes,
        cpu_usec: after.cpu_usec.saturating_sub(before.cpu_usec),
        throttled_usec: after.throttled_usec.saturating_sub(before.throttled_usec),
        processes_peak: exit.usage.pids_peak.saturating_sub(own),
        processes_refused: after.processes_refused.saturating_sub(before.processes_refused),
        counters: Some(Box::new(Counters { before, after })),
        generation: exit.generation,
        asked_by: None,
        console_from: exit.console.0,
        console_to: exit.console.1,
        hint: exit.hint.map(|hint| bounded(hint, HINT_BYTES_MAX)),
    }
}

fn counted(usage: &Usage) -> Counted {
    Counted {
        cpu_usec: usage.cpu_usec,
        throttled_usec: usage.throttled_usec,
        oom_kills: usage.oom_kills,
        processes_refused: usage.pids_refused,
        read_bytes: usage.read_bytes,
        write_bytes: usage.write_bytes,
    }
}

/// Specs name only signals that exist; SIGTERM stands in for one from another release.
pub(crate) fn signal_number(name: &str) -> i32 {
    process::signal_number(name).unwrap_or(15)
}

/// Kills the shim that holds the lock. Returns whether there was one.
///
/// It has noted itself in the lock, or, if it stopped before it could, is found by having it open: nobody
/// else but the fork server can, and that is no loss. A pid is only where to look; the kill goes through a
/// handle that was opened before the look.
pub(crate) fn kill_holder(lock: &Path, run_dir: &Path) -> Result<bool, SysError> {
    let works_there =
        |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|dir| dir == run_dir);
    if let Ok(pid) = lock::holder(lock).parse::<u32>() {
        return kill_if(pid, works_there);
    }
    let real = std::fs::canonicalize(lock).unwrap_or_else(|_| lock.to_owned());
    let has_it = |pid: u32| {
        let ours = process::name(pid).is_some_and(|name| name == SHIM);
        ours && process::open_files(pid).any(|file| Path::new(&file) == real)
    };
    let mut killed = false;
    for pid in process::all() {
        if has_it(pid) {
            killed |= kill_if(pid, has_it)?;
        }
    }
    Ok(killed)
}

fn kill_if(pid: u32, is_it: impl Fn(u32) -> bool) -> Result<bool, SysError> {
    let Ok(pidfd) = process::open_pidfd(pid) else { return Ok(false) };
    let found = is_it(pid);
    if found {
        process::signal(pidfd.as_fd(), 9)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Child, Command};

    use super::*;

    /// A program of this name that has the file open.
    fn with_open(dir: &Path, name: &str, file: &Path) -> Child {
        let program = dir.join(name);
        if !program.exists() {
            std::fs::copy("/bin/sleep", &program).unwrap();
        }
        let lock = File::open(file).unwrap();
        Command::new(program).arg("1000").stdin(lock).spawn().unwrap()
    }

    #[test]
    fn a_shim_that_has_not_noted_itself_is_found_by_its_lock_and_nobody_else_is_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, other) = (dir.path().join("lock"), dir.path().join("other"));
        for file in [&lock, &other] {
            File::create(file).unwrap();
        }
        let mut stranger = with_open(dir.path(), "somebody", &lock);
        let mut another = with_open(dir.path(), SHIM, &other);
        assert!(!kill_holder(&lock, dir.path()).unwrap());
        let mut newborn = with_open(dir.path(), "sodium-shim", &lock);
        // It becomes the program a moment after it was made.
        while process::name(newborn.id()).as_deref() != Some(SHIM) {
            std::thread::yield_now();
        }
        assert!(kill_holder(&lock, dir.path()).unwrap());
        assert!(!newborn.wait().unwrap().success());
        for bystander in [&mut stranger, &mut another] {
            assert!(bystander.try_wait().unwrap().is_none());
            bystander.kill().unwrap();
            bystander.wait().unwrap();
        }
    }
}
