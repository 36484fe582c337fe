//! Parameters in the query of a request. Those that are not known are passed over.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::schema;
use sodium_model::SandboxName;

/// A switch: on if it is there, but for `0` and `false`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(input)?;
        Ok(Self(!matches!(&*text, "0" | "false")))
    }
}

/// A switch of something that cannot be taken back: what is neither yes nor no is refused.
fn sure<'de, D: Deserializer<'de>>(input: D) -> Result<Flag, D::Error> {
    match &*Cow::<str>::deserialize(input)? {
        "1" | "true" => Ok(Flag(true)),
        "0" | "false" => Ok(Flag(false)),
        _ => Err(D::Error::custom("expected true or false")),
    }
}

impl Serialize for Flag {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.serialize_str(if self.0 { "1" } else { "0" })
    }
}

impl JsonSchema for Flag {
    fn schema_name() -> Cow<'static, str> {
        "Flag".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A switch: on if it is there, but for `0` and `false`.",
            "type": "string",
            "examples": ["1", "0"],
        })
    }
}

/// Which sandboxes are listed, or followed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct ListQuery {
    /// Follow every change from `resource_version` on, as lines of JSON.
    #[serde(default)]
    pub watch: Flag,
    /// Where a watch goes on from; 410 when that is forgotten. Without it, what is there comes first.
    pub resource_version: Option<String>,
    /// Only those with this label, as `KEY=VALUE`. Not for a watch.
    #[schemars(extend("pattern" = "="))]
    pub label: Option<String>,
}

/// How a sandbox is deleted.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct DeleteQuery {
    /// Only this incarnation.
    pub uid: Option<Uuid>,
    /// Keep its workspace for the undo period.
    #[serde(default, deserialize_with = "sure")]
    #[schemars(extend("enum" = ["1", "0", "true", "false"]))]
    pub keep_workspace: Flag,
    /// Kill it instead of asking it to end.
    #[serde(default, deserialize_with = "sure")]
    #[schemars(extend("enum" = ["1", "0", "true", "false"]))]
    pub force: Flag,
    /// Answer once it is gone, or after so long, such as `30s`.
    #[serde(default)]
    #[schemars(schema_with = "schema::wait")]
    pub wait: Option<String>,
}

/// How long a client waits for the outcome.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct WaitQuery {
    /// Answer once nothing runs, or after so long, such as `30s`. Default: at once.
    #[serde(default)]
    #[schemars(schema_with = "schema::wait")]
    pub wait: Option<String>,
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerVerb {
    /// Run; ends a hold.
    Start,
    /// Ask it to end, and hold it stopped.
    Stop,
    /// End it at once, and hold it stopped.
    Kill,
    /// End it and run it again.
    Restart,
    /// Have it stand still, with all its memory.
    Pause,
    /// Let it go on after a pause.
    Resume,
    /// Keep its memory and its workspace, and have it go on.
    Checkpoint,
    /// Go back to its checkpoint.
    Restore,
}

/// How a power verb is carried out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct VerbQuery {
    /// Answer once it is done, or after so long, such as `30s`. Default: at once.
    #[serde(default)]
    #[schemars(schema_with = "schema::wait")]
    pub wait: Option<String>,
    /// Only with `restore`: the name of a new sandbox that goes on from the checkpoint instead.
    #[serde(default)]
    #[schemars(with = "SandboxName")]
    pub to: Option<String>,
}

/// What a ticket is good for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct TicketQuery {
    /// For output alone.
    #[serde(default)]
    pub read_only: Flag,
}

/// Which part of a console is read, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct LogsQuery {
    /// The first byte. Default: the oldest that is kept.
    #[schemars(extend("maximum" = u64::MAX))]
    pub offset: Option<u64>,
    /// Without `offset`: so many bytes before the end.
    #[schemars(extend("maximum" = u64::MAX))]
    pub tail: Option<u64>,
    /// Follow output as it is written.
    #[serde(default)]
    pub follow: Flag,
    /// `json`: lines with offset, time and stream. Default: bytes as they were written.
    pub format: Option<String>,
}

/// How documents are applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct ApplyQuery {
    /// Change nothing, and say what would be changed.
    #[serde(default)]
    pub dry_run: Flag,
    /// With `dry_run`: as if this file of the directory of specs said it.
    #[serde(rename = "as")]
    pub as_file: Option<String>,
}

/// Which events are listed, or followed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct EventsQuery {
    /// Only those of the sandbox of this name.
    pub sandbox: Option<String>,
    /// Only those after this number.
    #[serde(default)]
    #[schemars(extend("maximum" = u64::MAX))]
    pub since: u64,
    /// Go on as they happen, as lines of JSON.
    #[serde(default)]
    pub follow: Flag,
}

/// What a console begins with, and how it comes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::never_null)]
pub struct ConsoleQuery {
    /// The first byte.
    #[schemars(extend("maximum" = u64::MAX))]
    pub offset: Option<u64>,
    /// Without `offset`: so many bytes before the end. Default: 64 KiB.
    #[schemars(extend("maximum" = u64::MAX))]
    pub tail: Option<u64>,
    /// `binary`: output comes as bytes. Default: all is JSON.
    pub format: Option<String>,
}
