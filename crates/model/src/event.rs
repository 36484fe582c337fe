//! Events: what happened, in the order it was committed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::SandboxName;
use crate::text::bounded;
use crate::time::Time;

/// Whether somebody should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Normal,
    Warning,
}

/// Bytes of a message: ten thousand events are kept.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The message of an event: what it quotes was written by anybody.
pub fn message(text: impl Into<String>) -> String {
    bounded(text, MESSAGE_BYTES_MAX)
}

/// The same of what somebody asked for: who it was is never cut.
pub fn message_by(text: impl Into<String>, asker: &str) -> String {
    let by = format!(" ({asker})");
    let text = bounded(text, MESSAGE_BYTES_MAX.saturating_sub(by.len()));
    bounded(text + &by, MESSAGE_BYTES_MAX)
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The number of the transaction it was part of; several may share one.
    pub seq: u64,
    /// When it was committed.
    pub time: Time,
    /// The sandbox that it concerns; null where it concerns none.
    pub name: Option<SandboxName>,
    /// Whether somebody should care.
    pub level: Level,
    /// What happened, as one CamelCase word for programs.
    pub reason: String,
    /// What happened, as a sentence for people, of 1024 bytes at most.
    pub message: String,
}
