//! Bodies of the first daemon's paths: its fields, which are never renamed, and ours beside them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::schema;
use sodium_model::{Condition, ExitRecord, Isolation, Limits, Owner, Phase, SandboxName, Time};

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeedAnswer {
    /// It.
    pub data: SeedSandbox,
}

/// All sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeedList {
    /// By name.
    pub data: Vec<SeedSandbox>,
}

/// A sandbox, flat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeedSandbox {
    /// This incarnation of the name.
    pub uuid: Uuid,
    /// What its image runs, such as `node`; null without an image.
    pub runtime: Option<String>,
    /// What it may use at most; 0 is unlimited.
    pub limits: SeedLimits,
    /// When it was made.
    pub created_at: Time,
    /// How far it is, in three words.
    pub status: SeedStatus,
    /// The name, which no other sandbox has at the same time.
    pub name: SandboxName,
    /// The image; null if it has none.
    pub image: Option<String>,
    /// How strongly it is kept apart from the host.
    pub isolation: Isolation,
    /// Who may edit the spec.
    pub owner: Owner,
    /// A richer word than `status`, for people.
    pub phase: Phase,
    /// Counts edits of the spec, from 1.
    pub generation: u64,
    /// What is true of it, one statement each.
    pub conditions: Vec<Condition>,
    /// The process on the host that stands for it. Only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub pid: Option<u32>,
    /// When the newest run began. Only once it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub started_at: Option<Time>,
    /// How the newest run ended. Only once it did.
    #[serde(flatten)]
    pub end: Option<SeedEnd>,
    /// What it uses. Only of one that is asked for by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Stats")]
    pub stats: Option<Stats>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeedEnd {
    /// As a shell has it: 128 + n for a signal, 127 where it could not start; null if nobody saw it.
    pub exit_code: Option<i32>,
    /// When it had ended.
    pub stopped_at: Time,
    /// All that is known of the end.
    pub exit: ExitRecord,
}

/// The three words that old clients switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SeedStatus {
    /// It never ran.
    Created,
    /// It is not proved to have ended.
    Running,
    /// It has ended.
    Stopped,
}

/// The first daemon's six limits; 0 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedLimits {
    /// Memory of the whole sandbox, in MiB.
    pub memory_mb: u64,
    /// Time of cpus, in percent of one.
    pub cpu_percent: u64,
    /// Files of the workspace, in MiB.
    pub disk_mb: u64,
    /// Seconds that one run may take.
    pub timeout_seconds: u64,
    /// Processes and threads at once.
    pub max_processes: u64,
    /// Open files of each process.
    pub max_files: u64,
}

/// What a sandbox uses; zeros while it does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Time of cpus, in hundredths of a second.
    pub cpu_ticks: u64,
    /// Bytes read from disks.
    pub disk_read_bytes: u64,
    /// Bytes written to disks.
    pub disk_write_bytes: u64,
    /// The most memory at once, in bytes.
    pub memory_peak_bytes: u64,
    /// Time of cpus, in microseconds.
    pub cpu_usec: u64,
    /// How long it was held back by its cpu limit, in microseconds.
    pub throttled_usec: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processes that the kernel killed since there was no memory.
    pub oom_kills: u64,
}

/// A sandbox to be made, which does not run yet. Each field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct CreateSandbox {
    /// Picks an image by what it runs: node, python, bun, deno, bash as shipped. Default: node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The id of an image, which goes before `runtime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The name. Default: one that nobody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SandboxName>,
    /// How strongly it is kept apart from the host. Default: as config.json says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// The environment of the program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::env")]
    pub env: BTreeMap<String, String>,
    /// The command as one text, split as a shell splits words. Default: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub startup: Option<String>,
    /// Memory of the whole sandbox, in MiB; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("memory_mb")))]
    pub memory_mb: Option<u64>,
    /// Time of cpus, in percent of one; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("cpu_percent")))]
    pub cpu_percent: Option<u64>,
    /// Files of the workspace, in MiB; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("disk_mb")))]
    pub disk_mb: Option<u64>,
    /// Seconds that one run may take; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("timeout_seconds")))]
    pub timeout_seconds: Option<u64>,
    /// Processes and threads at once; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("max_processes")))]
    pub max_processes: Option<u64>,
    /// Open files of each process; 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("max_files")))]
    pub max_files: Option<u64>,
}

/// What is to run. Without a command, what ran last, or the image's startup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct StartCommand {
    /// The program, from now on; an empty text is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub command: Option<String>,
    /// Its arguments. Without a command they are not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::words")]
    pub args: Vec<String>,
}
