//! The ledger: each limit and each wall of a sandbox, and what became of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use sodium_model::{Breaches, SandboxName, Verdict, WallStatus};

/// What a sandbox was promised, and what the kernel says of that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ledger {
    /// Whose it is.
    pub name: SandboxName,
    /// Whether it refuses to run unless all of it is enforced.
    pub strict: bool,
    /// Its limits.
    pub items: Vec<LedgerLimit>,
    /// Its walls.
    pub walls: Vec<WallStatus>,
}

/// One limit, what became of it, and how much of it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerLimit {
    /// The name of the limit, such as `memory_mb`.
    pub limit: String,
    /// What the spec asks for, in the unit of the limit; 0 is unlimited.
    pub requested: u64,
    /// What keeps it, such as `cgroup v2 memory.max`; empty when nothing does.
    pub mechanism: String,
    /// What the kernel says it is, in the unit of the limit; null where it was not asked.
    pub read_back: Option<u64>,
    /// Whether it is kept; null until something runs.
    pub verdict: Option<Verdict>,
    /// Why it is not enforced; empty where it is.
    pub reason: String,
    /// What is used now, in the unit of the limit; null where nobody counts.
    pub usage: Option<u64>,
    /// The most that was used at once, in the unit of the limit; null where nobody counts.
    pub peak: Option<u64>,
    /// How often it was met, over all instances.
    pub breaches: Breaches,
}
