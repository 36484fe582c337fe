//! A sandbox in full: what is wanted of it, what the daemon knows of it, and what is sent to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::document::{ApiVersion, Kind};
use sodium_model::{
    Breaches, Condition, ExitRecord, Iid, InstancePhase, LimitStatus, Owner, Phase, Power,
    SandboxName, Spec, StopReason, Time, WallStatus,
};

/// One sandbox: what is declared, what operators asked for, and what the daemon knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sandbox {
    /// The version of this shape.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// The kind of thing that this is.
    pub kind: Kind,
    /// What it is called, and what is known of what was declared.
    pub metadata: Metadata,
    /// What is declared, with every default filled in.
    pub spec: Arc<Spec>,
    /// What operators asked for.
    pub power: Power,
    /// What the daemon knows of it.
    pub status: Status,
}

/// What a sandbox is called, and what is known of what was declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metadata {
    /// The name, which no other sandbox has at the same time.
    pub name: SandboxName,
    /// Words of whoever declares it, for whoever lists it.
    pub labels: BTreeMap<String, String>,
    /// This incarnation of the name: one that is deleted and made again has another.
    pub uid: Uuid,
    /// Counts edits of the spec, from 1.
    pub generation: u64,
    /// The version of all that is said here. Opaque: to be compared, and sent back in If-Match.
    pub resource_version: String,
    /// When it was made.
    pub created_at: Time,
    /// Who may edit the spec.
    pub owner: Owner,
    /// When it was asked to go; null if it was not.
    pub deletion_at: Option<Time>,
}

/// What the daemon knows of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// A summary for people, on which nothing should branch.
    pub phase: Phase,
    /// The edit of the spec that this speaks of.
    pub observed_generation: u64,
    /// The request to run that this speaks of.
    pub observed_request: u64,
    /// What is true of it, one statement each.
    pub conditions: Vec<Condition>,
    /// What runs; null if nothing does.
    pub instance: Option<Instance>,
    /// How the newest instance ended; null if it has not.
    pub last_exit: Option<ExitRecord>,
    /// Failures in a row, which the pause before the next start grows with.
    pub failures: u64,
    /// How often it was started again since it was made.
    pub restarts: u64,
    /// The memory that the next start goes on from; null if it begins anew.
    pub asleep: Option<Checkpoint>,
    /// What `restore` goes back to; null if there is nothing.
    pub checkpoint: Option<Checkpoint>,
    /// When it is started again; null if it does not wait for that.
    pub next_start_at: Option<Time>,
    /// What became of each limit: of what runs all, of what does not those that are known not to be kept.
    pub limits: Vec<LimitStatus>,
    /// What became of each wall: of what runs all, of what does not those that are known to be missing.
    pub walls: Vec<WallStatus>,
    /// How often each limit was met, by its name, over all instances.
    pub breaches: BTreeMap<String, Breaches>,
}

/// One start of a sandbox that is not proved to have ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// Its name, which no other start has.
    pub iid: Iid,
    /// How far it has come.
    pub phase: InstancePhase,
    /// The generation of the spec that it runs.
    pub generation: u64,
    /// The program that runs it, with its version; empty until it was started.
    pub runtime: String,
    /// The process on the host that stands for it; null until it was started.
    pub pid: Option<u32>,
    /// When it was decided on.
    pub created_at: Time,
    /// When its program began to run; null until then.
    pub started_at: Option<Time>,
    /// Why it was asked to end; null if it was not.
    pub stop_reason: Option<StopReason>,
}

/// Memory that was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// The instance that it is of.
    pub iid: Iid,
    /// When it was taken.
    pub taken_at: Time,
    /// The program that took it, with its version: no other can go on from it.
    pub runtime: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether the workspace was kept with it.
    pub has_workspace: bool,
}

/// All that there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// One after another.
    pub items: Vec<T>,
}

/// All sandboxes, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxList {
    /// By name.
    pub items: Vec<Sandbox>,
    /// That moment: a watch goes on from it.
    pub resource_version: String,
}

/// It was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Success {
    /// Always true.
    #[schemars(extend("const" = true))]
    pub success: bool,
}

impl Success {
    pub const DONE: Self = Self { success: true };
}

/// Who a sandbox is given to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Who may edit the spec from now on.
    pub owner: Owner,
}

/// A line for a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The text, without the line break that is added to it.
    pub input: String,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Columns.
    #[schemars(range(max = 10_000))]
    pub cols: u16,
    /// Rows.
    #[schemars(range(max = 10_000))]
    pub rows: u16,
}
