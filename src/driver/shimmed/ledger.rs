//! Limits, one by one: what was asked, what keeps it, what the kernel says it is.

use crate::driver::runsc;
use crate::model::{LimitStatus, Limits, Verdict};
use crate::sys::cgroup::{self, Applied, Controller};
use crate::sys::spawn;

const NO_DISK: &str = "this release has no mechanism for disk limits";

/// Who counts the processes of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    /// The host's kernel, with so many of the runtime's own among them.
    Host { own: u64 },
    /// The guest's kernel; the host's sees other ones.
    Guest,
}

/// What the cgroup is asked to keep.
pub(super) fn to_cgroup(limits: &Limits, counting: Counting) -> cgroup::Limits {
    let some = |value: u64| (value > 0).then_some(value);
    cgroup::Limits {
        memory_bytes: some(limits.memory_mb).map(|mb| mb << 20),
        cpu_percent: some(limits.cpu_percent),
        pids: match counting {
            Counting::Host { own } => some(limits.max_processes).map(|count| count + own),
            Counting::Guest => runsc::host_tasks(limits),
        },
    }
}

/// The limit on open files to set, and whether it is the one that was asked for: a daemon without
/// CAP_SYS_RESOURCE cannot give more than it has.
pub(super) fn open_files(limits: &Limits) -> Option<(u64, bool)> {
    let most = spawn::open_files_max();
    (limits.max_files > 0).then(|| (limits.max_files.min(most), limits.max_files <= most))
}

/// What became of each.
pub(super) fn statuses(
    limits: &Limits,
    applied: &[Applied],
    counting: Counting,
) -> Vec<LimitStatus> {
    Limits::NAMES.into_iter().map(|name| status(name, limits, applied, counting)).collect()
}

/// What keeps a limit, what the kernel says of it, how well that is, and why not better.
type Kept = (String, Option<u64>, Verdict, String);

fn status(name: &str, limits: &Limits, applied: &[Applied], counting: Counting) -> LimitStatus {
    let requested = limits.get(name).unwrap_or(0);
    let from_cgroup = |controller, to_unit: &dyn Fn(u64) -> u64| {
        let found = applied.iter().find(|applied| applied.controller == controller);
        let read_back = found.and_then(|applied| applied.read_back).map(to_unit);
        let kept = requested == 0 || read_back == Some(requested);
        let (verdict, reason) = match (found, kept) {
            (_, true) => (Verdict::Enforced, String::new()),
            (None, false) => {
                (Verdict::Unsupported, format!("no cgroup controller for {name} on this host"))
            }
            (Some(_), false) => (Verdict::Degraded, "the kernel set another value".to_owned()),
        };
        let mechanism = found.map(|applied| applied.mechanism.clone()).unwrap_or_default();
        (mechanism, read_back, verdict, reason)
    };
    let (mechanism, read_back, verdict, reason): Kept = match name {
        "memory_mb" => from_cgroup(Controller::Memory, &|bytes| bytes >> 20),
        "cpu_percent" => from_cgroup(Controller::Cpu, &|percent| percent),
        "max_processes" => match counting {
            Counting::Host { own } => {
                from_cgroup(Controller::Pids, &|pids| pids.saturating_sub(own))
            }
            Counting::Guest => in_guest("RLIMIT_NPROC", requested),
        },
        "max_files" if counting == Counting::Guest => in_guest("RLIMIT_NOFILE", requested),
        "max_files" => match open_files(limits) {
            Some((value, true)) => kept("RLIMIT_NOFILE", Some(value)),
            Some((value, false)) => {
                let why = above_own(value);
                ("RLIMIT_NOFILE".to_owned(), Some(value), Verdict::Degraded, why)
            }
            None => kept("", None),
        },
        "timeout_seconds" => kept("timer in the shim", (requested > 0).then_some(requested)),
        _ if requested == 0 => kept("", None),
        _ => (String::new(), None, Verdict::Unsupported, NO_DISK.to_owned()),
    };
    LimitStatus { limit: name.to_owned(), requested, mechanism, read_back, verdict, reason }
}

fn kept(mechanism: &str, read_back: Option<u64>) -> Kept {
    (mechanism.to_owned(), read_back, Verdict::Enforced, String::new())
}

/// Kept by gVisor's kernel, which takes every value and is not asked for it again.
fn in_guest(what: &str, requested: u64) -> Kept {
    if requested == 0 {
        return kept("", None);
    }
    let reason = "in the bundle; not read back from gVisor's kernel".to_owned();
    (format!("{what} in the guest"), None, Verdict::Enforced, reason)
}

fn above_own(most: u64) -> String {
    format!("the daemon itself may open only {most} files and cannot give more")
}

/// Limits that nothing here can keep, known before any start.
pub(super) fn unenforced(
    cgroups: &cgroup::Root,
    counting: Counting,
) -> Vec<(&'static str, String)> {
    let governed = |controller| cgroups.governs(controller);
    let needed = [
        ("memory_mb", Controller::Memory),
        ("cpu_percent", Controller::Cpu),
        ("max_processes", Controller::Pids),
    ];
    let mut broken: Vec<(&'static str, String)> = needed
        .into_iter()
        .filter(|(_, controller)| !governed(*controller))
        .filter(|(name, _)| *name != "max_processes" || counting != Counting::Guest)
        .map(|(name, _)| (name, format!("no cgroup controller for {name} on this host")))
        .collect();
    broken.push(("disk_mb", NO_DISK.to_owned()));
    broken
}
