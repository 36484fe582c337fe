//! Limits, one by one: what was asked, what keeps it, what the kernel says it is.

use crate::DriverError;
use crate::storage::volume::{self, MIB};
use crate::storage::workspace;
use sodium_model::{LimitStatus, Limits, Spec, Verdict};
use sodium_sys::cgroup::{self, Applied, Controller};
use sodium_sys::spawn;

/// Who counts the processes of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// The host's kernel, with so many of the runtime's own among them.
    Host { own: u64 },
    /// The guest's kernel; the host's sees other ones: so many for each of the guest's, and so many more. There is room
    /// for them all, since the guest's own limit is what is meant to be met.
    Guest { tasks_per_process: u64, tasks_own: u64 },
}

impl Counting {
    pub(crate) fn is_guest(self) -> bool {
        matches!(self, Self::Guest { .. })
    }

    /// How many of what the host counts are the runtime's.
    pub(crate) fn own(self) -> u64 {
        match self {
            Self::Host { own } => own,
            Self::Guest { .. } => 0,
        }
    }

    /// What the host is to allow for this limit.
    fn on_host(self, limit: u64) -> u64 {
        match self {
            Self::Host { own } => limit + own,
            Self::Guest { tasks_per_process, tasks_own } => limit * tasks_per_process + tasks_own,
        }
    }
}

/// The least of a console that is of any use.
const CONSOLE_BYTES_MIN: u64 = 64 << 10;

/// How a limit on the disk is divided: what the workspace and /tmp may take, if there is a limit, and what the
/// console. Together they are what was asked for, so that the console counts and a full disk does not silence it.
pub(crate) fn shares(limits: &Limits, console_bytes: u64) -> (Option<u64>, u64) {
    if limits.disk_mb == 0 {
        return (None, console_bytes);
    }
    let all = limits.disk_mb * MIB;
    let console = console_bytes.min(all / 4);
    let files = ((all - console) / MIB * MIB).max(volume::BYTES_MIN);
    (Some(files), (all - files).max(CONSOLE_BYTES_MIN))
}

/// Whether a strict sandbox may run with these.
pub(crate) fn check_strict(spec: &Spec, limits: &[LimitStatus]) -> Result<(), DriverError> {
    let broken = |limit: &&LimitStatus| limit.requested > 0 && !limit.is_enforced();
    let broken: Vec<String> = limits
        .iter()
        .filter(broken)
        .map(|limit| format!("{} is not enforced ({})", limit.limit, limit.reason))
        .collect();
    if !spec.strict || broken.is_empty() {
        return Ok(());
    }
    Err(DriverError::Refused(format!("strict: {}", broken.join("; "))))
}

/// What the cgroup is asked to keep.
pub(crate) fn to_cgroup(
    limits: &Limits,
    counting: Counting,
    turn: u64,
    device: Option<(u64, u64)>,
) -> cgroup::Limits {
    let some = |value: u64| (value > 0).then_some(value);
    let cpus = |count| cgroup::Cpus { count, turn };
    let io = |device| cgroup::Io { device, bytes_per_second: some(limits.io) };
    cgroup::Limits {
        // gVisor's kernel counts for its guest.
        cpus: some(limits.cpu_percent.div_ceil(100)).filter(|_| !counting.is_guest()).map(cpus),
        io: device.map(io),
        memory_bytes: some(limits.memory_mb).map(|mb| mb << 20),
        cpu_percent: some(limits.cpu_percent),
        pids: some(limits.max_processes).map(|count| counting.on_host(count)),
    }
}

/// The limit on open files to set, and whether it is the one that was asked for: a daemon without
/// CAP_SYS_RESOURCE cannot give more than it has.
pub(crate) fn open_files(limits: &Limits) -> Option<(u64, bool)> {
    let most = spawn::open_files_max();
    (limits.max_files > 0).then(|| (limits.max_files.min(most), limits.max_files <= most))
}

/// What became of each.
pub(crate) fn statuses(
    limits: &Limits,
    applied: &[Applied],
    counting: Counting,
    disk: &Disk<'_>,
) -> Vec<LimitStatus> {
    let asked = |name: &&str| Limits::NAMES.contains(name) || limits.get(name) > Some(0);
    let one = |name| match name {
        "disk_mb" => disk_status(limits, disk),
        _ => status(name, limits, applied, counting),
    };
    Limits::ALL.into_iter().filter(asked).map(one).collect()
}

/// What keeps the limit on the disk, and how much of it is the console's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk<'a> {
    pub kept: &'a workspace::Kept,
    pub console_bytes: u64,
}

fn disk_status(limits: &Limits, disk: &Disk<'_>) -> LimitStatus {
    let workspace::Kept { mechanism, read_back, verdict, reason } = disk.kept.clone();
    let aside = disk.console_bytes.div_ceil(MIB);
    let mechanism = match read_back {
        Some(bytes) if limits.disk_mb > 0 => {
            format!("{mechanism} of {} MiB, {aside} MiB for the console", bytes / MIB)
        }
        Some(_) | None => mechanism,
    };
    LimitStatus {
        limit: "disk_mb".to_owned(),
        requested: limits.disk_mb,
        mechanism,
        read_back: read_back
            .filter(|_| limits.disk_mb > 0)
            .map(|bytes| (bytes + disk.console_bytes) / MIB),
        verdict,
        reason,
    }
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
            (None, false) => (Verdict::Unsupported, no_controller(name)),
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
            Counting::Guest { .. } => in_guest("RLIMIT_NPROC", requested),
        },
        "max_files" if counting.is_guest() => in_guest("RLIMIT_NOFILE", requested),
        "max_files" => match open_files(limits) {
            Some((value, true)) => kept("RLIMIT_NOFILE", Some(value)),
            Some((value, false)) => {
                let why = above_own(value);
                ("RLIMIT_NOFILE".to_owned(), Some(value), Verdict::Degraded, why)
            }
            None => kept("", None),
        },
        "timeout_seconds" => kept("timer in the shim", (requested > 0).then_some(requested)),
        "output" => kept("rate limiter in the shim", (requested > 0).then_some(requested)),
        _ if requested == 0 => kept("", None),
        _ => match from_cgroup(Controller::Blkio, &|bytes| bytes) {
            (mechanism, None, ..) => {
                let why =
                    "its workspace is on no block device whose io the kernel can limit".to_owned();
                (mechanism, None, Verdict::Unsupported, why)
            }
            kept => kept,
        },
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

fn no_controller(name: &str) -> String {
    if sodium_sys::is_root() {
        return format!("no cgroup controller for {name} on this host");
    }
    format!("no cgroup controller for {name} was given to the user that sodiumd runs as")
}

fn above_own(most: u64) -> String {
    format!("the daemon itself may open only {most} files and cannot give more")
}

/// Limits that nothing here can keep, known before any start.
pub(crate) fn unenforced(
    cgroups: &cgroup::Root,
    counting: Counting,
    disk: Result<volume::Kind, String>,
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
        .filter(|(name, _)| *name != "max_processes" || !counting.is_guest())
        .map(|(name, _)| (name, no_controller(name)))
        .collect();
    broken.extend(disk.err().map(|why| ("disk_mb", format!("the kernel keeps no limit: {why}"))));
    broken
}
