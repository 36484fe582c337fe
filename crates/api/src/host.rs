//! What concerns the host and all of its sandboxes: health, files of specs, draining, tickets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use sodium_model::{Isolation, SandboxName, Time, Violation};

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether all is well.
    pub status: HealthStatus,
    /// The version of the daemon.
    pub version: String,
    /// The isolation of sandboxes that ask for none.
    pub isolation: Isolation,
    /// Where it listens; null while another program has its port.
    pub address: Option<SocketAddr>,
    /// Seconds since it was started.
    pub uptime: f64,
    /// Of each isolation `ok`, or why it is unavailable.
    pub isolations: BTreeMap<String, String>,
    /// Of each isolation that is available, the program behind it with its version.
    pub runtimes: BTreeMap<String, String>,
    /// Of each image that asks for them, how many sandboxes wait that were started ahead.
    pub warm: BTreeMap<String, usize>,
    /// `ok`, or what is the matter with the store.
    pub store: String,
    /// Whether the host is drained, and nothing runs.
    pub drained: bool,
}

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// It is.
    Ok,
    /// The default isolation, the store or the port is not there.
    Degraded,
}

/// A file of specs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SpecFile {
    /// Relative to the directory of specs.
    pub path: String,
    /// Sandboxes that it owns.
    pub names: Vec<SandboxName>,
    /// What is wrong with it. While anything is, its sandboxes stay as they were.
    pub faults: Vec<Violation>,
    /// Sandboxes that it names and does not own, and who does.
    pub conflicts: BTreeMap<SandboxName, String>,
    /// Sandboxes that it owns and does not name any more, and since when.
    pub missing: BTreeMap<SandboxName, Time>,
    /// Why removing those waits for a word; null if it does not.
    pub held: Option<String>,
}

/// Removals that go ahead now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Confirmed {
    /// The sandboxes that go.
    pub confirmed: Vec<SandboxName>,
}

/// Whether the host is drained, and how far that is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    /// Whether nothing is to run.
    pub drained: bool,
    /// Sandboxes that have not ended, with all that they leave behind.
    pub running: usize,
}

/// Lets whoever has it open one WebSocket of one sandbox, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ticket {
    /// To be sent as `?ticket=`.
    pub ticket: String,
    /// When it is good no longer: 30 s from now.
    pub expires_at: Time,
    /// Whether it is good for output alone.
    pub read_only: bool,
}
