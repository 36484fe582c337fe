//! A sandbox as it may be declared: the YAML of files and the JSON of requests.
//!
//! The daemon itself reads documents with `sodium_model::draft`, which knows where each fault stands. A test holds
//! these types against it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::schema;
use sodium_model::draft::{FAILURE_COUNT_MAX, LABEL_COUNT_MAX, SIGNALS};
use sodium_model::{Isolation, Limits, Network, RestartPolicy, SandboxName, Span, State};

/// The version of the shape of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The only one that there is.
    #[default]
    #[serde(rename = "sodium.dev/v1")]
    V1,
}

/// The kind of thing that is declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// The only one that there is.
    #[default]
    Sandbox,
}

/// One sandbox, declared. What is left out has its default, which is filled in once, when it is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The version of this shape.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// The kind of thing that is declared.
    pub kind: Kind,
    /// What it is called.
    pub metadata: MetadataDraft,
    /// What it should be.
    pub spec: SpecDraft,
}

/// What a sandbox is called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetadataDraft {
    /// The name: a DNS label that no other sandbox has.
    pub name: SandboxName,
    /// Words of yours, to list it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = LABEL_COUNT_MAX))]
    pub labels: BTreeMap<String, String>,
}

/// A document, or what was read before with another spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct PutDocument {
    /// The version of this shape.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// The kind of thing that is declared.
    pub kind: Kind,
    /// What it is called.
    pub metadata: PutMetadata,
    /// What it should be.
    pub spec: SpecDraft,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub power: Option<Value>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub status: Option<Value>,
}

/// What a sandbox is called, with what was read of it before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct PutMetadata {
    /// The name, which is the one in the path.
    pub name: SandboxName,
    /// Words of yours, to list it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = LABEL_COUNT_MAX))]
    pub labels: BTreeMap<String, String>,
    /// The version that was read: refused if there is another one by now. If-Match goes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub uid: Option<Value>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub generation: Option<Value>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub created_at: Option<Value>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub owner: Option<Value>,
    /// Not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub deletion_at: Option<Value>,
}

/// What a sandbox should be. An image or a command is needed, unless it is not to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null, transform = schema::has_command)]
pub struct SpecDraft {
    /// The id of a file in `images/`: its startup, variables, files and limits are the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How strongly it is kept apart from the host, and never weaker than config.json's floor. Default: as that says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Program and arguments, without a shell; `{{NAME}}` stands for the variable of that name in `env`. Default: the
    /// image's startup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::words")]
    pub command: Vec<String>,
    /// The environment of the program, beside HOME, PATH, TERM, LANG and USER.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::env")]
    pub env: BTreeMap<String, String>,
    /// Whether it should run. Default: running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What happens after its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartDraft>,
    /// How it is asked to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopDraft>,
    /// A terminal instead of pipes. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    /// The network that it sees. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What it may use at most; 0 is unlimited, where the host allows that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsDraft>,
    /// Refuse to run unless every limit asked for and every wall promised is enforced. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// The workspace begins empty at each start, in memory, within `disk_mb`. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Written into the workspace before each start: path and content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::files")]
    pub files: BTreeMap<String, String>,
}

/// What happens after its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct RestartDraft {
    /// After which ends it is started again. Default: on-failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// The pause before each restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffDraft>,
    /// Failures in a row after which it stays down. Default: 0, which never gives up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = FAILURE_COUNT_MAX))]
    pub max_failures: Option<u64>,
}

/// The first and the longest pause before a restart; it doubles from one failure to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct BackoffDraft {
    /// The pause after the first failure, more than nothing. Default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,
    /// The longest pause, no shorter than the first. Default: 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
}

/// How it is asked to end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct StopDraft {
    /// The signal that asks it. Default: SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = SIGNALS))]
    pub signal: Option<String>,
    /// How long it has from the signal until everything of it is killed. Default: 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
}

/// What it may use at most; 0 is unlimited, where the host allows that. Defaults are the image's, then config.json's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::never_null)]
pub struct LimitsDraft {
    /// Memory of the whole sandbox, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("memory_mb")))]
    pub memory_mb: Option<u64>,
    /// Time of cpus, in percent of one: 150 is one and a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("cpu_percent")))]
    pub cpu_percent: Option<u64>,
    /// Files of the workspace, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("disk_mb")))]
    pub disk_mb: Option<u64>,
    /// Seconds that one run may take; its end counts as a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("timeout_seconds")))]
    pub timeout_seconds: Option<u64>,
    /// Processes and threads at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("max_processes")))]
    pub max_processes: Option<u64>,
    /// Open files of each process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("max_files")))]
    pub max_files: Option<u64>,
    /// Bytes a second, read and written each, between the sandbox and its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("io")))]
    pub io: Option<u64>,
    /// Bytes a second of console.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = Limits::max_of("output")))]
    pub output: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use sodium_model::draft;

    fn fields_of<T: JsonSchema>() -> BTreeSet<String> {
        let schema = schemars::schema_for!(T).to_value();
        schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect()
    }

    #[test]
    fn fields_are_those_that_are_read() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(fields_of::<SpecDraft>(), set(draft::SPEC_FIELDS));
        assert_eq!(fields_of::<LimitsDraft>(), set(&Limits::ALL));
    }

    /// Whether both take it, or neither does.
    #[track_caller]
    fn check(spec: Value, want: bool) {
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": "web", "labels": {"a": "b"}}, "spec": spec});
        let typed = serde_json::from_value::<Document>(document.clone());
        let read = draft::read_document(&document.into());
        assert_eq!((typed.is_ok(), read.is_ok()), (want, want), "{typed:?} {read:?}");
    }

    #[test]
    fn what_is_read_has_the_type_and_what_is_refused_has_not() {
        let whole = json!({
            "image": "bash", "isolation": "process", "command": ["sh"], "env": {"A": "b"},
            "state": "hibernated", "stop": {"signal": "SIGINT", "grace": "1m 30s"}, "tty": true,
            "restart": {"policy": "on-failure", "max_failures": 3,
                "backoff": {"initial": "250ms", "max": "1h"}},
            "network": "host", "limits": {"memory_mb": 1, "io": 2, "output": 3}, "strict": true,
            "ephemeral": true, "files": {"a/b": "c"},
        });
        check(whole, true);
        check(json!({}), true);
        check(json!({"imgae": "bash"}), false);
    }
}
