//! Programs inside what runs: what is asked for, and what comes back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::schema;

/// A program to be run to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct ExecRequest {
    /// Program and arguments.
    #[schemars(schema_with = "schema::program")]
    pub command: Vec<String>,
    /// Added to the environment of the sandbox.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::env")]
    pub env: BTreeMap<String, String>,
    /// Where it runs: an absolute path. Default: the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::absolute_path")]
    pub work_dir: Option<String>,
    /// What it reads, and then the end of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stdin: String,
    /// Seconds after which it is killed. Default, and what 0 means: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 3600))]
    pub timeout_seconds: Option<u64>,
}

/// The first frame of a WebSocket: what is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct ExecSocketRequest {
    /// Program and arguments.
    #[schemars(schema_with = "schema::program")]
    pub command: Vec<String>,
    /// Added to the environment of the sandbox.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::env")]
    pub env: BTreeMap<String, String>,
    /// Where it runs: an absolute path. Default: the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::absolute_path")]
    pub work_dir: Option<String>,
    /// A terminal instead of pipes.
    #[serde(default)]
    pub tty: bool,
    /// Columns of the terminal. Default: 80.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 10_000))]
    pub cols: Option<u16>,
    /// Rows of the terminal. Default: 24.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 10_000))]
    pub rows: Option<u16>,
}

/// How a program ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecAnswer {
    /// As a shell has it: 128 + n for a signal; null if nobody saw it.
    pub code: Option<i32>,
    /// The signal that ended it, such as SIGKILL; null if none did.
    pub signal: Option<String>,
    /// The first MiB of its standard output; what is no UTF-8 is marked.
    pub stdout: String,
    /// The first MiB of its standard error.
    pub stderr: String,
    /// Whether there was more of either.
    pub truncated: bool,
}

/// Later frames of a client. What it sends as bytes is the program's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecInput {
    /// The input is at its end.
    Eof,
    /// The terminal has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// Frames of the daemon. Output comes as bytes: a 1 or a 2 for the output, and then what was written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ExecFrame {
    /// It runs.
    Started,
    /// It has ended, and all of its output was sent.
    Exit {
        /// As a shell has it: 128 + n for a signal; null if nobody saw it.
        code: Option<i32>,
        /// The signal that ended it; null if none did.
        signal: Option<String>,
    },
    /// It does not run, or not any more.
    Error {
        /// Why, for people.
        message: String,
        /// Why, for programs.
        code: ErrorCode,
    },
}
