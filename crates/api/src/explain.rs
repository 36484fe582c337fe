//! Why a sandbox is as it is: who set what, what was seen, what was decided, and what is next.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use sodium_model::{
    Condition, Edit, Event, ExitRecord, Iid, Owner, Phase, Power, SandboxName, Time, WallStatus,
};

/// The chain from what is declared to what comes next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// What is explained.
    pub name: SandboxName,
    /// Who may edit the spec.
    pub owner: Owner,
    /// How often the spec was edited.
    pub generation: u64,
    /// Of each field that was edited, the edit that set it last.
    pub fields: BTreeMap<String, FieldEdit>,
    /// The last edits, oldest first.
    pub edits: Vec<Edit>,
    /// What operators asked for.
    pub power: Power,
    /// What the daemon saw.
    pub observed: Seen,
    /// What it makes of that.
    pub decided: Decided,
    /// What happened last, oldest first.
    pub events: Vec<Event>,
}

/// Who set a field, and when; not to what, which may be secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldEdit {
    /// The generation that it made.
    pub generation: u64,
    /// When it was made.
    pub at: Time,
    /// Who made it.
    pub by: Owner,
}

/// What the daemon saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Observed")]
pub struct Seen {
    /// A summary for people.
    pub phase: Phase,
    /// What is true of it, one statement each.
    pub conditions: Vec<Condition>,
    /// What became of each wall.
    pub walls: Vec<WallStatus>,
    /// The newest instance, whether it runs or not; null if there was none.
    pub iid: Option<Iid>,
    /// The generation of the spec that runs; null if nothing does.
    pub runs_generation: Option<u64>,
    /// How the newest instance ended; null if it has not.
    pub last_exit: Option<ExitRecord>,
    /// The last 4 KiB of what it said before its end; null if it has not ended, or that is gone.
    pub last_output: Option<String>,
    /// Failures in a row.
    pub failures: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decided {
    /// The next step; `wait`, `nothing`, or `look again` where it could not be seen.
    pub next: String,
    /// When that is due; null if at once, or never.
    pub due_at: Option<Time>,
    /// Why, as a sentence for people.
    pub why: String,
}
