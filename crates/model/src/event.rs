//! Events: what happened, in the order it was committed.

use serde::{Deserialize, Serialize};

use crate::name::SandboxName;
use crate::text::bounded;
use crate::time::Time;

/// Whether somebody should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The number of the transaction it was part of; several may share one.
    pub seq: u64,
    pub time: Time,
    /// The sandbox it concerns; a file's event may concern none.
    pub name: Option<SandboxName>,
    pub level: Level,
    /// CamelCase, for programs.
    pub reason: String,
    /// For people. See [`message`].
    pub message: String,
}
