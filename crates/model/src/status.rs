//! What the daemon knows of a sandbox. Only the daemon writes it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::time::Time;

/// A word for people. Nothing branches on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    #[default]
    Pending,
    Starting,
    Running,
    /// It stands still, as an operator asked.
    Paused,
    Stopping,
    Stopped,
    /// Not running, with its memory kept.
    Hibernated,
    /// It ended well and is not to run again.
    Completed,
    BackingOff,
    /// It ended badly and is not to run again, or cannot run.
    Failed,
    Deleting,
    Unknown,
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// Whether a limit is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it was asked for.
    Enforced,
    /// Something keeps it, and not as it was asked for.
    Degraded,
    /// Nothing on this host does.
    Unsupported,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Degraded => "degraded",
            Self::Unsupported => "unsupported",
        }
    }
}

/// One limit and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "StoredLimit")]
#[schemars(!from)]
pub struct LimitStatus {
    /// The name of the limit, such as `memory_mb`.
    pub limit: String,
    /// What the spec asks for, in the unit of the limit; 0 is unlimited.
    pub requested: u64,
    /// What keeps it, such as `cgroup v2 memory.max`; empty when nothing does.
    pub mechanism: String,
    /// What the kernel says it is, in the unit of the request.
    pub read_back: Option<u64>,
    /// Whether it is kept.
    pub verdict: Verdict,
    /// Why it is not enforced; empty where it is.
    pub reason: String,
}

impl LimitStatus {
    pub fn is_enforced(&self) -> bool {
        self.verdict == Verdict::Enforced
    }
}

/// The same as it may lie in a store: releases before the verdict knew only yes and no.
#[derive(Deserialize)]
struct StoredLimit {
    limit: String,
    requested: u64,
    mechanism: String,
    read_back: Option<u64>,
    verdict: Option<Verdict>,
    enforced: Option<bool>,
    #[serde(default)]
    reason: String,
}

impl From<StoredLimit> for LimitStatus {
    fn from(stored: StoredLimit) -> Self {
        let StoredLimit { limit, requested, mechanism, read_back, verdict, enforced, reason } =
            stored;
        let was = match enforced {
            Some(false) if mechanism.is_empty() => Verdict::Unsupported,
            Some(false) => Verdict::Degraded,
            Some(true) | None => Verdict::Enforced,
        };
        let verdict = verdict.unwrap_or(was);
        Self { limit, requested, mechanism, read_back, verdict, reason }
    }
}

/// What stands between a workload and the host, one thing each.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Wall {
    /// The guest's kernel is not the host's.
    Kernel,
    UserNamespace,
    MountNamespace,
    PidNamespace,
    IpcNamespace,
    UtsNamespace,
    NetworkNamespace,
    CgroupNamespace,
    /// On the host, it is a user that nobody else is.
    User,
    Capabilities,
    NoNewPrivs,
    /// Of system calls.
    Filter,
    Landlock,
    Rootfs,
}

impl Wall {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::UserNamespace => "user_namespace",
            Self::MountNamespace => "mount_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::NetworkNamespace => "network_namespace",
            Self::CgroupNamespace => "cgroup_namespace",
            Self::User => "user",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no_new_privs",
            Self::Filter => "filter",
            Self::Landlock => "landlock",
            Self::Rootfs => "rootfs",
        }
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// Whether a wall stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WallVerdict {
    /// As the isolation promises.
    Enforced,
    /// It is promised, and it does not stand, or nobody can tell.
    NotEnforced,
    /// Neither the isolation nor the spec promises it.
    None,
}

impl WallVerdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::NotEnforced => "not_enforced",
            Self::None => "none",
        }
    }
}

/// One wall and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WallStatus {
    /// Which wall.
    pub wall: Wall,
    /// What the isolation promises: `own`, `none`, `set`, `read-only`; or `host`, where it promises nothing.
    pub requested: String,
    /// What puts it up, such as `seccomp`; empty where nothing does.
    pub mechanism: String,
    /// What the kernel says of the process that runs; null where it was not asked, or says nothing.
    pub effective: Option<String>,
    /// Whether it stands.
    pub verdict: WallVerdict,
    /// Why it does not stand, or how far it can be known.
    pub reason: String,
}

impl WallStatus {
    /// Whether it is promised and does not stand.
    pub fn is_open(&self) -> bool {
        self.verdict == WallVerdict::NotEnforced
    }
}

/// How often a limit was met, over all instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Breaches {
    /// How often.
    pub count: u64,
    /// When the last was recorded; null if there was none.
    pub last: Option<Time>,
}

impl Breaches {
    pub fn add(&mut self, count: u64, at: Time) {
        if count > 0 {
            self.count += count;
            self.last = Some(at);
        }
    }
}

/// The status of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The edit of the spec this status speaks of.
    pub observed_generation: u64,
    /// The run request this status speaks of.
    pub observed_request: u64,
    pub phase: Phase,
    pub conditions: Vec<Condition>,
    /// When it will be started again, if it waits for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Time>,
    pub limits: Vec<LimitStatus>,
    /// Of what runs; of what does not, those that are known to be missing on this host.
    pub walls: Vec<WallStatus>,
}
