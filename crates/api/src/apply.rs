//! What documents change, or would change, and what the loop is about to do.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use sodium_model::{SandboxName, Time, Violation};

/// What became of each document of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Apply {
    /// Whether nothing was changed, and this is only what would be.
    pub dry_run: bool,
    /// In the order of the documents.
    pub results: Vec<Applied>,
}

/// What became of one document, or would.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// The sandbox that it declares.
    pub name: SandboxName,
    /// What is done.
    pub action: Action,
    /// What that means for what runs: `start`, `next start`, `same`, `live`, `refused: below current use`, `restart`,
    /// `recreate`, or `stop`. Not there in a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub effect: Option<String>,
    /// The fields that differ, such as `command` and `memory_mb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    pub fields: Option<Vec<String>>,
    /// For each of them, what it means for what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub effects: Option<BTreeMap<String, String>>,
    /// For each of them, what it is and would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BTreeMap<String, ValueChange>")]
    pub changes: Option<BTreeMap<String, ValueChange>>,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub why: Option<String>,
    /// The generation that there is now. Only where something was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub generation: Option<u64>,
}

impl Applied {
    /// That something is done, and nothing about it.
    pub fn new(name: SandboxName, action: Action) -> Self {
        let (effect, fields, effects, changes) = (None, None, None, None);
        Self { name, action, effect, fields, effects, changes, why: None, generation: None }
    }
}

/// What is done with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It would be created.
    Create,
    /// It would be changed.
    Change,
    /// It is as the document says.
    Unchanged,
    /// It is somebody else's, or on its way out: nothing is done with any document.
    Conflict,
    /// It was created.
    Created,
    /// It was changed.
    Changed,
    /// It is in none of the documents, and goes. Only on the command line.
    Delete,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Unchanged => "unchanged",
            Self::Conflict => "conflict",
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Delete => "delete",
        }
    }
}

/// A value, and the one in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValueChange {
    /// What it is; null if it is not set.
    pub from: Value,
    /// What it would be; null if it would not be set.
    pub to: Value,
}

/// What the loop is about to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The next step of each sandbox that is not as it should be.
    pub steps: Vec<PlannedStep>,
    /// Files of specs with faults, by their paths.
    pub faults: BTreeMap<String, Vec<Violation>>,
    /// Sandboxes that this host would not start, and why.
    pub refused: BTreeMap<SandboxName, String>,
}

/// A step, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedStep {
    /// The sandbox.
    pub name: SandboxName,
    /// What is done, such as `start`.
    pub step: String,
    /// When; null: now.
    pub at: Option<Time>,
    /// Why, as a sentence for people.
    pub why: String,
}
