//! A sandbox: everything that is durable about it, as one immutable value.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::checkpoint::Checkpoint;
use crate::instance::{ExitRecord, Instance, InstancePhase};
use crate::name::SandboxName;
use crate::spec::{Spec, State};
use crate::status::{Breaches, Status};
use crate::text::bounded;
use crate::time::Time;

/// Who may edit the spec.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    Api,
    /// A file, by its path relative to the directory of specs.
    File(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => out.write_str("api"),
            Self::File(path) => write!(out, "file:{path}"),
        }
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}

impl TryFrom<String> for Owner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("file:") {
            Some(path) => Ok(Self::File(path.to_owned())),
            None if text == "api" => Ok(Self::Api),
            None => Err(format!("{text:?} is neither \"api\" nor \"file:PATH\"")),
        }
    }
}

/// An operator's word above the spec's `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Stay stopped, whatever any source says.
    Stopped,
    /// Stay stopped, and end at once what runs.
    Killed,
    /// Run, though the spec says stopped.
    Started,
}

/// What operators asked for. Durable, and not an edit of the spec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Power {
    /// What is held against the spec; null if nothing is.
    pub hold: Option<Hold>,
    /// What runs is to stand still until it is resumed.
    pub paused: bool,
    /// Counts requests to run. An instance that answers an older one is replaced.
    pub request: u64,
    /// Counts requests for a checkpoint.
    pub checkpoint: u64,
}

/// That the sandbox is to go. Never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    pub at: Time,
    /// Whether the workspace is put aside instead of removed.
    pub keep_workspace: bool,
    /// Whether the workload is killed instead of asked.
    pub force: bool,
}

/// One change of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Edit {
    /// The generation that it made.
    pub generation: u64,
    /// When it was made.
    pub at: Time,
    /// Who made it.
    pub by: Owner,
    /// What it set, such as `limits.memory_mb`; no values, which may be secret.
    pub fields: Vec<String>,
    /// How many more it set than are named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// Edits remembered of each sandbox, fields of each that are named, and bytes of such a name.
const EDIT_COUNT_MAX: usize = 20;
const EDIT_FIELD_COUNT_MAX: usize = 32;
const EDIT_FIELD_BYTES_MAX: usize = 128;

impl Edit {
    pub fn new(generation: u64, at: Time, by: Owner, fields: Vec<String>) -> Self {
        let more = fields.len().saturating_sub(EDIT_FIELD_COUNT_MAX);
        let named = fields.into_iter().take(EDIT_FIELD_COUNT_MAX);
        let fields = named.map(|field| bounded(field, EDIT_FIELD_BYTES_MAX)).collect();
        Self { generation, at, by, fields, more }
    }
}

impl History {
    /// Remembers an edit, and forgets the oldest.
    pub fn note(&mut self, edit: Edit) {
        self.edits.push(edit);
        if self.edits.len() > EDIT_COUNT_MAX {
            self.edits.remove(0);
        }
    }
}

/// What is remembered from one instance to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The number of the newest instance.
    pub instances: u64,
    /// Failures in a row, for the back-off.
    pub failures: u64,
    pub restarts: u64,
    /// The pause after the last failure, its jitter included.
    pub delay_ms: u64,
    /// No start before this.
    pub not_before: Option<Time>,
    /// What the next start goes on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asleep: Option<Arc<Checkpoint>>,
    /// What an operator asked to keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<Arc<Checkpoint>>,
    /// The last changes of the spec, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// How often each limit was met, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub breaches: BTreeMap<String, Breaches>,
    /// The newest request for a checkpoint that was answered, and why not, if it was refused.
    pub checkpointed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_fault: Option<String>,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub name: SandboxName,
    pub uid: Uuid,
    pub owner: Owner,
    pub labels: BTreeMap<String, String>,
    pub generation: u64,
    pub spec: Arc<Spec>,
    pub created_at: Time,
    /// The uid on the host that this sandbox alone has.
    pub host_uid: u32,
    pub power: Power,
    pub deletion: Option<Deletion>,
    pub history: History,
    /// The newest instance, dead or not.
    pub instance: Option<Arc<Instance>>,
    pub status: Status,
    /// The number of the transaction that last changed it.
    pub rv: u64,
}

impl Sandbox {
    /// Whether it should run, restart policy aside.
    pub fn wants_to_run(&self) -> bool {
        match (self.deletion, self.power.hold) {
            (Some(_), _) | (None, Some(Hold::Stopped | Hold::Killed)) => false,
            (None, Some(Hold::Started)) => true,
            (None, None) => self.spec.state == State::Running,
        }
    }

    /// Whether what runs should be put to sleep with its memory kept.
    pub fn wants_to_sleep(&self) -> bool {
        self.deletion.is_none() && self.power.hold.is_none() && self.spec.state == State::Hibernated
    }

    /// The instance that is not proved dead, if there is one.
    pub fn live(&self) -> Option<&Arc<Instance>> {
        self.instance.as_ref().filter(|instance| instance.phase != InstancePhase::Dead)
    }

    /// How the newest instance ended, if it did.
    pub fn last_exit(&self) -> Option<&ExitRecord> {
        self.instance.as_ref().and_then(|instance| instance.exit.as_ref())
    }
}
