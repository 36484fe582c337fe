//! Frames of the console's WebSocket, as the first daemon's clients speak it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;
use crate::seed::Stats;
use sodium_model::ExitRecord;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ConsoleInput {
    /// A line for the program.
    Input {
        /// The text, without the line break that is added to it.
        #[serde(default)]
        content: String,
    },
    /// Run; without a command, what ran last.
    Start {
        /// The program, from now on; an empty text is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "schema::word")]
        command: Option<String>,
        /// Its arguments.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(schema_with = "schema::words")]
        args: Vec<String>,
    },
    /// Ask it to end.
    Stop,
    /// End it at once.
    Kill,
    /// The terminal has another size.
    Resize {
        /// Columns. Default: 80.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "u16", extend("maximum" = 10_000))]
        cols: Option<u16>,
        /// Rows. Default: 24.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "u16", extend("maximum" = 10_000))]
        rows: Option<u16>,
    },
}

/// What the daemon says. With `format=binary`, output comes as bytes instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ConsoleFrame {
    /// Both outputs, in order.
    Output {
        /// The text; characters arrive whole.
        content: String,
    },
    /// Bytes that are no longer kept.
    Gap {
        /// The offset of the first of them.
        from: u64,
        /// The offset behind the last of them.
        to: u64,
    },
    /// What it uses, each second while it runs.
    Stats(Stats),
    /// It has ended, and all of its output was sent.
    Exit {
        /// As a shell has it: 128 + n for a signal; null if nobody saw it.
        code: Option<i32>,
        /// All that is known of the end.
        exit: Box<ExitRecord>,
    },
    /// What was asked for was not done, or the connection ends.
    Error {
        /// Why, for people.
        message: String,
    },
}
