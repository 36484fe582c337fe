//! What a user wants of a sandbox, whole: every default is filled in, so that a later release's
//! defaults change nothing that is already declared.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arguments;
use crate::time::Span;
use crate::violation::Violation;

/// How strongly a workload is kept apart, strongest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    Gvisor,
    Bubblewrap,
    Process,
}

impl Isolation {
    pub const WORDS: &[(&str, Self)] =
        &[("gvisor", Self::Gvisor), ("bubblewrap", Self::Bubblewrap), ("process", Self::Process)];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gvisor => "gvisor",
            Self::Bubblewrap => "bubblewrap",
            Self::Process => "process",
        }
    }

    /// Whether this is at least as strong as `floor`.
    pub fn satisfies(self, floor: Self) -> bool {
        self <= floor
    }
}

/// Whether the sandbox should run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Stopped,
    /// Not running, but with its memory kept, to go on where it was.
    Hibernated,
}

impl State {
    pub const WORDS: &[(&str, Self)] =
        &[("running", Self::Running), ("stopped", Self::Stopped), ("hibernated", Self::Hibernated)];
}

/// When an ended workload is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    Always,
    /// Unless it ended by itself with code 0.
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub const WORDS: &[(&str, Self)] =
        &[("always", Self::Always), ("on-failure", Self::OnFailure), ("never", Self::Never)];
}

/// Which network the workload sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A loopback of its own and nothing else.
    None,
    /// The host's. Only where config.json enables it too.
    Host,
}

impl Network {
    pub const WORDS: &[(&str, Self)] = &[("none", Self::None), ("host", Self::Host)];
}

/// Whether and when an ended workload is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restart {
    /// After which ends it is started again.
    pub policy: RestartPolicy,
    /// The pause before each restart.
    pub backoff: BackoffRange,
    /// Failures in a row after which it stays down; 0 never gives up.
    pub max_failures: u64,
}

/// The first and the longest pause before a restart; it doubles from one failure to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackoffRange {
    /// The pause after the first failure.
    pub initial: Span,
    /// The longest pause.
    pub max: Span,
}

/// How a workload is asked to end, and how long it has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stop {
    /// The signal that asks it to end, such as SIGTERM.
    pub signal: String,
    /// How long it has from the signal until everything of it is killed.
    pub grace: Span,
}

/// The six limits that every sandbox has, the one on output, and one that may be asked for; 0 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Memory of the whole sandbox, in MiB.
    pub memory_mb: u64,
    /// Time of cpus, in percent of one: 150 is one and a half.
    pub cpu_percent: u64,
    /// Files of the workspace, in MiB.
    pub disk_mb: u64,
    /// Seconds that one run may take.
    pub timeout_seconds: u64,
    /// Processes and threads at once.
    pub max_processes: u64,
    /// Open files of each process.
    pub max_files: u64,
    /// Bytes a second, read and written each, between the sandbox and its disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub io: u64,
    /// Bytes a second of console. 0 is said as well, or what is written as it was read would be given the default.
    #[serde(default)]
    pub output: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Limits {
    pub const NAMES: [&str; 6] =
        ["memory_mb", "cpu_percent", "disk_mb", "timeout_seconds", "max_processes", "max_files"];

    /// With those that may be asked for.
    pub const ALL: [&str; 8] = [
        "memory_mb",
        "cpu_percent",
        "disk_mb",
        "timeout_seconds",
        "max_processes",
        "max_files",
        "io",
        "output",
    ];

    pub const NONE: Self = Self {
        memory_mb: 0,
        cpu_percent: 0,
        disk_mb: 0,
        timeout_seconds: 0,
        max_processes: 0,
        max_files: 0,
        io: 0,
        output: 0,
    };

    /// The limits nobody asked to be otherwise.
    pub const DEFAULT: Self = Self {
        memory_mb: 512,
        cpu_percent: 100,
        disk_mb: 1024,
        timeout_seconds: 300,
        max_processes: 64,
        max_files: 1024,
        // Beyond any build, and little beside what one shim can take.
        output: 16 << 20,
        ..Self::NONE
    };

    pub fn get_mut(&mut self, name: &str) -> Option<&mut u64> {
        match name {
            "memory_mb" => Some(&mut self.memory_mb),
            "cpu_percent" => Some(&mut self.cpu_percent),
            "disk_mb" => Some(&mut self.disk_mb),
            "timeout_seconds" => Some(&mut self.timeout_seconds),
            "max_processes" => Some(&mut self.max_processes),
            "max_files" => Some(&mut self.max_files),
            "io" => Some(&mut self.io),
            "output" => Some(&mut self.output),
            _ => None,
        }
    }

    pub fn get(mut self, name: &str) -> Option<u64> {
        self.get_mut(name).map(|value| *value)
    }

    /// The largest value that makes sense, to catch a slip of the unit.
    pub fn max_of(name: &str) -> u64 {
        match name {
            "memory_mb" => 16 << 20,
            "cpu_percent" => 100 * 1024,
            "disk_mb" => 64 << 20,
            "timeout_seconds" => 10 * 365 * 86_400,
            "max_processes" => 4 << 20,
            "io" | "output" => 1 << 40,
            _ => 1 << 30,
        }
    }
}

/// The spec of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spec {
    /// The id of an image, or none: then `command` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub image: Option<String>,
    /// How strongly it is kept apart from the host.
    pub isolation: Isolation,
    /// Program and arguments; `{{NAME}}` stands for the variable of that name in `env`.
    pub command: Vec<String>,
    /// The environment of the program, beside HOME, PATH, TERM, LANG and USER.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether it should run.
    pub state: State,
    /// What happens after its end.
    pub restart: Restart,
    /// How it is asked to end.
    pub stop: Stop,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// The network that it sees.
    pub network: Network,
    /// What it may use at most.
    pub limits: Limits,
    /// Refuse to run unless every limit asked for and every wall promised is enforced.
    pub strict: bool,
    /// The workspace begins empty at each start, and lies in memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Written into the workspace before each start: path and content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

impl Spec {
    /// The fields in which another one differs, such as `command` and `limits.memory_mb`.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let (old, new) = (serde_json::json!(self), serde_json::json!(other));
        let mut fields = Vec::new();
        differing("", &old, &new, &mut fields);
        fields
    }

    /// The command with its variables replaced.
    pub fn resolved_command(&self) -> Vec<String> {
        arguments::resolve(&self.command, &self.env)
    }

    /// Why no kernel would start its command, or nothing.
    pub fn command_fault(&self) -> Option<Violation> {
        arguments::fault(&self.command, &self.env).map(|fault| fault.below("spec"))
    }
}

/// Objects field by field, to the second level; all else as a whole.
fn differing(above: &str, old: &Value, new: &Value, fields: &mut Vec<String>) {
    let nothing = serde_json::Map::new();
    let object = |value: &'_ Value| value.as_object().cloned().unwrap_or_else(|| nothing.clone());
    let (old, new) = (object(old), object(new));
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (was, is) = (old.get(name), new.get(name));
        if was == is {
            continue;
        }
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        let nested = was.or(is).is_some_and(Value::is_object);
        if above.is_empty() && nested {
            let none = Value::Null;
            differing(&path, was.unwrap_or(&none), is.unwrap_or(&none), fields);
        } else {
            fields.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_is_ordered_by_strength() {
        assert!(Isolation::Gvisor.satisfies(Isolation::Bubblewrap));
        assert!(Isolation::Bubblewrap.satisfies(Isolation::Bubblewrap));
        assert!(!Isolation::Process.satisfies(Isolation::Bubblewrap));
    }
}
