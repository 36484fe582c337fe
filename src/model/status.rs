//! What the daemon knows of a sandbox. Only the daemon writes it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::condition::Condition;
use crate::model::time::Time;

/// A word for people. Nothing branches on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// One limit and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    pub limit: String,
    pub requested: u64,
    /// What keeps it, such as `cgroup v2 memory.max`; empty when nothing does.
    pub mechanism: String,
    /// What the kernel says it is, in the unit of the request.
    pub read_back: Option<u64>,
    pub enforced: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
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
}
