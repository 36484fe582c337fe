//! Instances: one start of a sandbox each, and how it ended.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::spec::{Limits, Spec};
use crate::text::bounded;
use crate::time::Time;

/// `<last 16 digits of uid>-<n>`, never reused. Names the run directory and the cgroup. The store has no two uids that
/// end alike, and releases before this one wrote 8 digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Iid(String);

/// It names directories and cgroups, so whatever is read as one is one.
impl TryFrom<String> for Iid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} names no instance"))
    }
}

impl Iid {
    pub fn new(uid: Uuid, n: u64) -> Self {
        Self(format!("{:016x}-{n}", Self::digits_of(uid)))
    }

    /// What the instances of a sandbox begin with. UUIDv7 begins with the time, so that two made close together
    /// share their first digits; all but two bits of the last 64 are random.
    pub fn digits_of(uid: Uuid) -> u64 {
        uid.as_u64_pair().1
    }

    /// Of something that was started before anybody wanted it. No instance of a sandbox is its zeroth.
    pub fn waiting(drawn: u64) -> Self {
        Self(format!("{drawn:016x}-0"))
    }

    /// Whether it was.
    pub fn is_waiting(&self) -> bool {
        self.0.ends_with("-0")
    }

    /// Reads one back from the name of a directory.
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, n) = text.split_once('-')?;
        let known = matches!(prefix.len(), 8 | 16);
        let hex = prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = n.bytes().all(|byte| byte.is_ascii_digit());
        (known && hex && digits && n.parse::<u64>().is_ok()).then(|| Self(text.to_owned()))
    }

    /// Whether it is of the same sandbox, and was started after this one.
    pub fn is_later_than(&self, instance: &Self) -> bool {
        let (ours, theirs) = (self.0.split_once('-'), instance.0.split_once('-'));
        let Some(((prefix, mine), (other, its))) = ours.zip(theirs) else { return false };
        let same = prefix.ends_with(other) || other.ends_with(prefix);
        same && mine.parse::<u64>().ok() > its.parse::<u64>().ok()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Iid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Iid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// How far an instance has come, as the store knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstancePhase {
    /// Intended: it may exist.
    Starting,
    Running,
    Stopping,
    /// Proved to be gone.
    Dead,
}

/// Why an instance was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// By a person, or a spec that says `stopped`.
    Stopped,
    /// By a person, at once.
    Killed,
    /// To run again, as asked.
    Restarted,
    /// To run with a changed spec.
    SpecChanged,
    Deleted,
    /// Its memory was kept, to go on later.
    Hibernated,
    /// Nothing is to run on this host.
    Drained,
    /// It holds more than its disk may, and nothing but us keeps that limit.
    Disk,
    /// It is strict, and a wall that it was promised does not stand.
    Walls,
    Timeout,
    /// What this host allows has changed, and the operator wants that to hold for what runs.
    Policy,
}

impl StopReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Restarted => "restarted",
            Self::SpecChanged => "spec_changed",
            Self::Deleted => "deleted",
            Self::Hibernated => "hibernated",
            Self::Drained => "drained",
            Self::Disk => "disk",
            Self::Walls => "walls",
            Self::Timeout => "timeout",
            Self::Policy => "policy",
        }
    }
}

/// One start, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub iid: Iid,
    pub n: u64,
    /// The generation it runs; moves on with changes applied in place.
    pub generation: u64,
    /// The run request it answers.
    pub request: u64,
    /// What it was started with, to tell what a later spec changes.
    pub spec: Spec,
    /// What is kept free for it besides while its limits are being changed: until that is done, it may have either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Limits>,
    pub phase: InstancePhase,
    pub boot_id: String,
    /// The program that runs it, with its version: `bubblewrap 0.8.0`.
    #[serde(default)]
    pub runtime: String,
    pub created_at: Time,
    #[serde(default)]
    pub started_at: Option<Time>,
    #[serde(default)]
    pub pid: Option<u32>,
    #[serde(default)]
    pub stop_reason: Option<StopReason>,
    /// Whether the end was asked for without grace.
    #[serde(default)]
    pub forced: bool,
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// Whether it went on from a checkpoint instead of beginning anew.
    #[serde(default)]
    pub restored: bool,
    /// Whether everything of it on the host was removed.
    #[serde(default)]
    pub released: bool,
}

/// Why an instance ended. Never invented: what is not known is `Lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitKind {
    /// It ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// The signal, such as SIGKILL.
        signal: String,
    },
    /// It needed more memory than it may have.
    Oom {
        /// Its exit code, if it had one.
        code: Option<i32>,
        /// The signal that ended it, if one did.
        signal: Option<String>,
    },
    /// It ran for longer than it may.
    Timeout {
        /// Its exit code, if it had one.
        code: Option<i32>,
        /// The signal that ended it, if one did.
        signal: Option<String>,
    },
    /// It held more than its disk may, and was stopped for that.
    Disk {
        /// Its exit code, if it had one.
        code: Option<i32>,
        /// The signal that ended it, if one did.
        signal: Option<String>,
    },
    /// It never ran.
    StartFailed {
        /// What was being done, such as `exec`.
        stage: String,
        /// Why that did not work, for people.
        message: String,
    },
    /// It is proved to be gone, and nobody saw how.
    Lost {
        /// How the evidence was lost.
        cause: LostCause,
    },
}

/// Bytes of why something could not start.
const REASON_BYTES_MAX: usize = 1024;

impl ExitKind {
    /// It never ran. `message` may quote what the runtime or the kernel said of a tenant's words.
    pub fn start_failed(stage: &str, message: String) -> Self {
        let message = bounded(message, REASON_BYTES_MAX);
        Self::StartFailed { stage: bounded(stage, REASON_BYTES_MAX), message }
    }
}

/// How the evidence was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostCause {
    /// The machine was restarted. Nobody's failure.
    Reboot,
    /// The daemon died between the intent and the start. Nothing ran.
    NeverStarted,
    /// The shim was killed.
    ShimGone,
}

/// The exit with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitRecord {
    /// The instance that ended.
    pub iid: Iid,
    /// Why it ended.
    #[serde(flatten)]
    pub kind: ExitKind,
    /// When it began to run; null if it never did.
    pub started_at: Option<Time>,
    /// When it had ended.
    pub ended_at: Time,
    /// Why it was asked to end; null if it was not.
    pub reason: Option<String>,
    /// Processes that the kernel killed since there was no memory.
    pub oom_kills: u64,
    /// The most memory that it had at once.
    pub memory_peak_bytes: u64,
    /// The time of cpus that it used, in microseconds.
    pub cpu_usec: u64,
    /// How long it was held back by its cpu limit, in microseconds.
    pub throttled_usec: u64,
    /// The most processes that it had at once.
    #[serde(default)]
    pub processes_peak: u64,
    /// How often one more process was refused.
    #[serde(default)]
    pub processes_refused: u64,
    /// What the kernel had counted when it began, and when it had ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Counters")]
    pub counters: Option<Box<Counters>>,
    /// The generation it ran.
    #[serde(default)]
    pub generation: u64,
    /// Who asked for the end, if anybody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub asked_by: Option<String>,
    /// The offset of the first byte of its console.
    #[serde(default)]
    pub console_from: u64,
    /// The offset behind the last byte of its console.
    #[serde(default)]
    pub console_to: u64,
    /// What may have been the matter, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub hint: Option<String>,
}

/// The kernel's counters, before and after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// When it began.
    pub before: Counted,
    /// When it had ended.
    pub after: Counted,
}

/// What the kernel has counted by then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counted {
    /// Time of cpus, in microseconds.
    pub cpu_usec: u64,
    /// Time held back by the cpu limit, in microseconds.
    pub throttled_usec: u64,
    /// Processes killed since there was no memory.
    pub oom_kills: u64,
    /// Processes refused.
    pub processes_refused: u64,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub write_bytes: u64,
}

impl ExitRecord {
    /// An end of which nothing was measured.
    pub fn unmeasured(iid: Iid, kind: ExitKind, ended_at: Time) -> Self {
        Self {
            iid,
            kind,
            started_at: None,
            ended_at,
            reason: None,
            oom_kills: 0,
            memory_peak_bytes: 0,
            cpu_usec: 0,
            throttled_usec: 0,
            processes_peak: 0,
            processes_refused: 0,
            counters: None,
            generation: 0,
            asked_by: None,
            console_from: 0,
            console_to: 0,
            hint: None,
        }
    }

    /// Whether the workload ended well, by itself.
    pub fn is_success(&self) -> bool {
        matches!(self.kind, ExitKind::Exited { code: 0 })
    }

    /// Whether it is nobody's failure, so that it counts for no back-off.
    pub fn is_innocent(&self) -> bool {
        let lost = ExitKind::Lost { cause: LostCause::Reboot };
        let never = ExitKind::Lost { cause: LostCause::NeverStarted };
        self.kind == lost || self.kind == never || self.was_asked()
    }

    /// Whether somebody asked for the end; running out of time or room is nobody's wish, and neither is a host that
    /// does not keep what it promises.
    pub fn was_asked(&self) -> bool {
        let faults =
            [StopReason::Timeout, StopReason::Disk, StopReason::Walls].map(StopReason::as_str);
        self.reason.as_deref().is_some_and(|reason| !faults.contains(&reason))
    }

    /// Whether it was ended because it is strict and a wall did not stand.
    pub fn is_for_walls(&self) -> bool {
        self.reason.as_deref() == Some(StopReason::Walls.as_str())
    }

    /// How often each limit was met, as the kernel counted it.
    pub fn breaches(&self) -> [(&'static str, u64); 4] {
        let timed_out = matches!(self.kind, ExitKind::Timeout { .. });
        [
            ("disk_mb", u64::from(matches!(self.kind, ExitKind::Disk { .. }))),
            ("memory_mb", self.oom_kills),
            ("max_processes", self.processes_refused),
            ("timeout_seconds", u64::from(timed_out)),
        ]
    }

    /// One line for people: `exited with code 3`.
    pub fn summary(&self) -> String {
        let ended = self.ended();
        match &self.hint {
            Some(hint) => format!("{ended}; {hint}"),
            None => ended,
        }
    }

    fn ended(&self) -> String {
        let how = |code: &Option<i32>, signal: &Option<String>| match (code, signal) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(signal)) => signal.clone(),
            (None, None) => "no code".to_owned(),
        };
        match &self.kind {
            ExitKind::Exited { code } => format!("exited with code {code}"),
            ExitKind::Signaled { signal } => format!("killed by {signal}"),
            ExitKind::Oom { code, signal } => format!("out of memory ({})", how(code, signal)),
            ExitKind::Timeout { code, signal } => {
                format!("time limit reached ({})", how(code, signal))
            }
            ExitKind::Disk { code, signal } => {
                format!("disk limit passed ({})", how(code, signal))
            }
            ExitKind::StartFailed { stage, message } => {
                format!("could not start ({stage}): {message}")
            }
            ExitKind::Lost { cause: LostCause::Reboot } => {
                "ended with a restart of the machine".to_owned()
            }
            ExitKind::Lost { cause: LostCause::NeverStarted } => "never started".to_owned(),
            ExitKind::Lost { cause: LostCause::ShimGone } => {
                "ended unseen: its shim was killed".to_owned()
            }
        }
    }
}

/// Linux's signals, numbered from one.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The number of a signal's name, for clients that think in 128 + n.
pub fn signal_number(name: &str) -> Option<i32> {
    let word = name.strip_prefix("SIG")?;
    let number = SIGNALS.iter().zip(1..).find(|(known, _)| **known == word);
    number.map(|(_, number)| number)
}

/// The name of a signal's number, for people.
pub fn signal_name(number: i32) -> Option<String> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    SIGNALS.get(index).map(|word| format!("SIG{word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_numbers_of_the_kernel() {
        assert_eq!(signal_number("SIGKILL"), Some(9));
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("SIGSYS"), Some(31));
        assert_eq!(signal_number("TERM"), None);
        assert_eq!(signal_name(9).as_deref(), Some("SIGKILL"));
        assert_eq!((signal_name(0), signal_name(99)), (None, None));
    }

    #[test]
    fn iids_read_back_and_directories_of_others_do_not() {
        let uid = Uuid::now_v7();
        let iid = Iid::new(uid, 12);
        assert!(iid.is_later_than(&Iid::new(uid, 9)) && !iid.is_later_than(&iid));
        assert!(!iid.is_later_than(&Iid::new(Uuid::nil(), 9)));
        assert_eq!(Iid::parse(iid.as_str()), Some(iid.clone()));
        // As a release before this one has written them.
        let text = uid.simple().to_string();
        let old = |n: u64| Iid::parse(&format!("{}-{n}", &text[24..])).unwrap();
        assert!(old(13).is_later_than(&iid) && iid.is_later_than(&old(11)));
        assert_ne!(old(12), iid);
        assert_eq!(Iid::parse("shims"), None);
        assert_eq!(Iid::parse("zzzzzzzz-1"), None);
    }
}
