//! Lines of JSON of what is followed: changes, events, the console.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::sandbox::Sandbox;
use sodium_model::{Event, Time};

/// One line of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum WatchEvent {
    /// There is one more.
    Added {
        /// The version to go on from after this.
        resource_version: String,
        /// As it is now.
        object: Box<Sandbox>,
    },
    /// One has changed.
    Modified {
        /// The version to go on from after this.
        resource_version: String,
        /// As it is now.
        object: Box<Sandbox>,
    },
    /// One is gone.
    Deleted {
        /// The version to go on from after this.
        resource_version: String,
        /// As it was at last.
        object: Box<Sandbox>,
    },
    /// Nothing has changed for 30 s.
    Bookmark {
        /// The version to go on from after this.
        resource_version: String,
    },
    /// The watch ends.
    Error {
        /// Why: `gone` for one that is too slow and has to list again, `unauthorized` if the token was replaced.
        code: ErrorCode,
        /// The status that a request would be answered with.
        status: u16,
        /// Why, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "String")]
        error: Option<String>,
    },
}

/// One line of events that are followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EventLine {
    /// Something happened.
    Event(Event),
    /// Nothing more is said, since the token was replaced.
    End {
        /// Why, for people.
        error: String,
        /// Why, for programs.
        code: ErrorCode,
    },
}

/// One line of a console with `format=json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LogLine {
    /// A stretch of one output.
    Text {
        /// The offset of its first byte.
        offset: u64,
        /// When it was written.
        time: Time,
        /// The output.
        stream: Stream,
        /// The text; characters arrive whole.
        text: String,
    },
    /// Bytes that are no longer kept.
    Gap {
        /// Which.
        gap: GapRange,
    },
    /// Nothing more is said, since the token was replaced.
    End {
        /// Why, for people.
        error: String,
        /// Why, for programs.
        code: ErrorCode,
    },
}

/// A range of bytes of a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GapRange {
    /// The offset of the first.
    pub from: u64,
    /// The offset behind the last.
    pub to: u64,
}

/// Who wrote to a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The program, to its standard output.
    Stdout,
    /// The program, to its standard error.
    Stderr,
    /// sodiumd, about the program.
    System,
}
