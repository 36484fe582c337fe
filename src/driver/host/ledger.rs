//! Limits, one by one: what was asked, what keeps it, what the kernel says it is.

use crate::model::{LimitStatus, Limits};
use crate::sys::cgroup::{self, Applied, Controller};
use crate::sys::spawn;

const NO_DISK: &str = "this release has no mechanism for disk limits";

/// What the cgroup is asked to keep.
pub(super) fn to_cgroup(limits: &Limits, own_processes: u64) -> cgroup::Limits {
    let some = |value: u64| (value > 0).then_some(value);
    cgroup::Limits {
        memory_bytes: some(limits.memory_mb).map(|mb| mb << 20),
        cpu_percent: some(limits.cpu_percent),
        pids: some(limits.max_processes).map(|count| count + own_processes),
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
    own_processes: u64,
) -> Vec<LimitStatus> {
    Limits::NAMES.into_iter().map(|name| status(name, limits, applied, own_processes)).collect()
}

fn status(name: &str, limits: &Limits, applied: &[Applied], own_processes: u64) -> LimitStatus {
    let requested = limits.get(name).unwrap_or(0);
    let from_cgroup = |controller, to_unit: &dyn Fn(u64) -> u64| {
        let found = applied.iter().find(|applied| applied.controller == controller);
        let read_back = found.and_then(|applied| applied.read_back).map(to_unit);
        let enforced = requested == 0 || read_back == Some(requested);
        let reason = match (found, enforced) {
            (_, true) => String::new(),
            (None, false) => format!("no cgroup controller for {name} on this host"),
            (Some(_), false) => "the kernel set another value".to_owned(),
        };
        let mechanism = found.map(|applied| applied.mechanism.clone()).unwrap_or_default();
        (mechanism, read_back, enforced, reason)
    };
    let (mechanism, read_back, enforced, reason) = match name {
        "memory_mb" => from_cgroup(Controller::Memory, &|bytes| bytes >> 20),
        "cpu_percent" => from_cgroup(Controller::Cpu, &|percent| percent),
        "max_processes" => {
            from_cgroup(Controller::Pids, &|pids| pids.saturating_sub(own_processes))
        }
        "max_files" => match open_files(limits) {
            Some((value, as_asked)) => {
                let reason = if as_asked { String::new() } else { above_own(value) };
                ("RLIMIT_NOFILE".to_owned(), Some(value), as_asked, reason)
            }
            None => (String::new(), None, true, String::new()),
        },
        "timeout_seconds" => (
            "timer in the shim".to_owned(),
            (requested > 0).then_some(requested),
            true,
            String::new(),
        ),
        _ => (String::new(), None, requested == 0, NO_DISK.to_owned()),
    };
    LimitStatus { limit: name.to_owned(), requested, mechanism, read_back, enforced, reason }
}

fn above_own(most: u64) -> String {
    format!("the daemon itself may open only {most} files and cannot give more")
}

/// Limits that nothing here can keep, known before any start.
pub(super) fn unenforced(cgroups: &cgroup::Root) -> Vec<(&'static str, String)> {
    let governed = |controller| cgroups.governs(controller);
    let needed = [
        ("memory_mb", Controller::Memory),
        ("cpu_percent", Controller::Cpu),
        ("max_processes", Controller::Pids),
    ];
    let mut broken: Vec<(&'static str, String)> = needed
        .into_iter()
        .filter(|(_, controller)| !governed(*controller))
        .map(|(name, _)| (name, format!("no cgroup controller for {name} on this host")))
        .collect();
    broken.push(("disk_mb", NO_DISK.to_owned()));
    broken
}
