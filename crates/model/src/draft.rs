//! A sandbox as somebody wrote it: what was given, and nothing that was not. Reading one reports
//! every fault at once; whether the whole makes sense is for [`crate::admission`], which is asked of
//! what could be read even if there are faults.

use std::collections::BTreeMap;

use crate::name::SandboxName;
use crate::spec::{Isolation, Limits, Network, RestartPolicy, State};
use crate::time::Span;
use crate::tree::{Faults, Node, join};
use crate::violation::suggestion;

/// The only version there is.
pub const API_VERSION: &str = "sodium.dev/v1";
/// The only kind there is.
pub const KIND: &str = "Sandbox";

/// Longest path of a file laid into a workspace, and longest name in it that a file system takes.
pub const FILE_PATH_BYTES_MAX: usize = 512;
const FILE_NAME_BYTES_MAX: usize = 255;
/// Most labels of a sandbox.
pub const LABEL_COUNT_MAX: usize = 64;

/// Most failures in a row that may be asked for.
pub const FAILURE_COUNT_MAX: u64 = 1_000_000;

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub name: SandboxName,
    pub labels: BTreeMap<String, String>,
    pub draft: Draft,
}

/// As much of a document as could be read, and the faults of the rest.
#[derive(Debug)]
pub struct Legible {
    pub name: Option<SandboxName>,
    pub labels: BTreeMap<String, String>,
    pub draft: Draft,
    pub faults: Faults,
}

/// A spec with only what was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    pub image: Option<String>,
    pub isolation: Option<Isolation>,
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    pub state: Option<State>,
    pub restart_policy: Option<RestartPolicy>,
    pub backoff_initial: Option<Span>,
    pub backoff_max: Option<Span>,
    pub max_failures: Option<u64>,
    pub stop_signal: Option<String>,
    pub stop_grace: Option<Span>,
    pub tty: Option<bool>,
    pub network: Option<Network>,
    pub limits: BTreeMap<&'static str, u64>,
    pub strict: Option<bool>,
    pub ephemeral: Option<bool>,
    pub files: BTreeMap<String, String>,
}

pub const SPEC_FIELDS: &[&str] = &[
    "image",
    "isolation",
    "command",
    "env",
    "state",
    "restart",
    "stop",
    "tty",
    "network",
    "limits",
    "strict",
    "ephemeral",
    "files",
];

/// Reads a document that has no fault.
pub fn read_document(node: &Node) -> Result<Document, Faults> {
    let Legible { name, labels, draft, faults } = read(node);
    match name {
        Some(name) if faults.is_empty() => Ok(Document { name, labels, draft }),
        Some(_) | None => Err(faults),
    }
}

/// Reads a whole document: `apiVersion`, `kind`, `metadata` and `spec`. Without a name it has a fault.
pub fn read(node: &Node) -> Legible {
    let mut faults = Faults::default();
    let mut name = None;
    let mut named = false;
    let mut labels = BTreeMap::new();
    let mut draft = Draft::default();
    let mut seen = [false, false];
    let known = ["apiVersion", "kind", "metadata", "spec"];
    faults.fields("", node, &known, |faults, key, path, value| match key {
        "apiVersion" => {
            seen[0] = true;
            expect_word(faults, path, value, API_VERSION);
        }
        "kind" => {
            seen[1] = true;
            expect_word(faults, path, value, KIND);
        }
        "metadata" => {
            faults.fields(path, value, &["name", "labels"], |faults, key, path, value| {
                if key == "name" {
                    named = true;
                    name = read_name(faults, path, value);
                } else {
                    labels = read_labels(faults, path, value);
                }
            })
        }
        _ => draft = read_spec(faults, path, value),
    });
    for (field, seen) in ["apiVersion", "kind"].into_iter().zip(seen) {
        if !seen && !faults.touch(field) {
            let wanted = if field == "kind" { KIND } else { API_VERSION };
            faults.add(field, node, format!("is missing; write \"{field}: {wanted}\""));
        }
    }
    if !named && !faults.touch("metadata.name") {
        faults.add("metadata.name", node, "is missing");
    }
    Legible { name, labels, draft, faults }
}

/// Reads the `spec` part alone.
pub fn read_spec(faults: &mut Faults, path: &str, node: &Node) -> Draft {
    let mut draft = Draft::default();
    faults.fields(path, node, SPEC_FIELDS, |faults, key, path, value| match key {
        "image" => draft.image = faults.text(path, value),
        "isolation" => draft.isolation = faults.choice(path, value, Isolation::WORDS),
        "command" => draft.command = Some(read_command(faults, path, value)),
        "env" => draft.env = read_env(faults, path, value),
        "state" => draft.state = faults.choice(path, value, State::WORDS),
        "restart" => read_restart(faults, path, value, &mut draft),
        "stop" => read_stop(faults, path, value, &mut draft),
        "tty" => draft.tty = faults.bool(path, value),
        "network" => draft.network = faults.choice(path, value, Network::WORDS),
        "limits" => draft.limits = read_limits(faults, path, value),
        "strict" => draft.strict = faults.bool(path, value),
        "ephemeral" => draft.ephemeral = faults.bool(path, value),
        _ => draft.files = read_files(faults, path, value),
    });
    draft
}

fn expect_word(faults: &mut Faults, path: &str, node: &Node, want: &str) {
    if let Some(found) = faults.text(path, node)
        && found != want
    {
        faults.add(path, node, format!("is {found:?}; this daemon knows only {want:?}"));
    }
}

pub fn read_name(faults: &mut Faults, path: &str, node: &Node) -> Option<SandboxName> {
    let text = faults.text(path, node)?;
    match SandboxName::try_from(text) {
        Ok(name) => Some(name),
        Err(error) => {
            faults.add(path, node, error.to_string());
            None
        }
    }
}

fn read_labels(faults: &mut Faults, path: &str, node: &Node) -> BTreeMap<String, String> {
    let labels = read_texts(faults, path, node);
    if labels.len() > LABEL_COUNT_MAX {
        faults.add(
            path,
            node,
            format!("has {} labels, the limit is {LABEL_COUNT_MAX}", labels.len()),
        );
    }
    labels
}

fn read_texts(faults: &mut Faults, path: &str, node: &Node) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for (key, value) in faults.map(path, node) {
        if let Some(text) = faults.text(&join(path, &key.name), value) {
            texts.insert(key.name.clone(), text);
        }
    }
    texts
}

/// A text that the kernel takes as an argument or a path.
pub fn read_word(faults: &mut Faults, path: &str, node: &Node) -> Option<String> {
    let text = faults.text(path, node)?;
    if text.contains('\0') {
        faults.add(path, node, "contains a NUL byte");
    }
    Some(text)
}

/// Several of them.
pub fn read_words(faults: &mut Faults, path: &str, node: &Node) -> Vec<String> {
    let mut words = Vec::new();
    for (index, word) in faults.list(path, node).iter().enumerate() {
        let path = format!("{path}[{index}]");
        words.extend(read_word(faults, &path, word));
    }
    words
}

/// A program and its arguments.
pub fn read_command(faults: &mut Faults, path: &str, node: &Node) -> Vec<String> {
    let words = read_words(faults, path, node);
    if words.first().is_some_and(String::is_empty) {
        faults.add(path, node, "names an empty program");
    }
    words
}

pub fn read_env(faults: &mut Faults, path: &str, node: &Node) -> BTreeMap<String, String> {
    let env = read_texts(faults, path, node);
    for (name, value) in &env {
        if !is_variable(name, value) {
            faults.add(&join(path, name), node, "is not a possible environment variable");
        }
    }
    env
}

/// Whether an environment can hold it.
pub fn is_variable(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

fn read_restart(faults: &mut Faults, path: &str, node: &Node, draft: &mut Draft) {
    let known = ["policy", "backoff", "max_failures"];
    faults.fields(path, node, &known, |faults, key, path, value| match key {
        "policy" => draft.restart_policy = faults.choice(path, value, RestartPolicy::WORDS),
        "max_failures" => draft.max_failures = faults.count(path, value, FAILURE_COUNT_MAX),
        _ => faults.fields(path, value, &["initial", "max"], |faults, key, path, value| {
            let span = read_span(faults, path, value);
            if key == "initial" { draft.backoff_initial = span } else { draft.backoff_max = span }
        }),
    });
}

fn read_stop(faults: &mut Faults, path: &str, node: &Node, draft: &mut Draft) {
    faults.fields(path, node, &["signal", "grace"], |faults, key, path, value| {
        if key == "grace" {
            draft.stop_grace = read_span(faults, path, value);
            return;
        }
        let Some(signal) = faults.text(path, value) else { return };
        if SIGNALS.contains(&signal.as_str()) {
            draft.stop_signal = Some(signal);
        } else {
            let hint = suggestion(&signal, SIGNALS.iter().copied());
            faults.add(
                path,
                value,
                format!("{signal:?} is not one of {}{hint}", SIGNALS.join(", ")),
            );
        }
    });
}

/// Signals that can ask a program to end.
pub const SIGNALS: &[&str] =
    &["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL"];

/// Longer than this is not a pause but a mistake.
const SPAN_MAX: Span = Span::seconds(180 * 86_400);

fn read_span(faults: &mut Faults, path: &str, node: &Node) -> Option<Span> {
    let text = faults.text(path, node)?;
    match Span::parse(&text) {
        Ok(span) if span <= SPAN_MAX => return Some(span),
        Ok(_) => faults.add(path, node, format!("{text:?} is longer than {SPAN_MAX}")),
        Err(_) => {
            faults.add(path, node, format!("{text:?} is not a duration like \"10s\" or \"1m 30s\""))
        }
    }
    None
}

pub fn read_limits(faults: &mut Faults, path: &str, node: &Node) -> BTreeMap<&'static str, u64> {
    let mut limits = BTreeMap::new();
    faults.fields(path, node, &Limits::ALL, |faults, key, path, value| {
        let name =
            Limits::ALL.iter().find(|name| **name == key).expect("fields() knows only these");
        if let Some(count) = faults.count(path, value, Limits::max_of(name)) {
            limits.insert(*name, count);
        }
    });
    limits
}

fn read_files(faults: &mut Faults, path: &str, node: &Node) -> BTreeMap<String, String> {
    let files = read_texts(faults, path, node);
    for name in files.keys() {
        if let Some(fault) = file_fault(name, &files) {
            faults.add(&join(path, name), node, fault);
        }
    }
    files
}

/// Why a file may not be laid into a workspace together with the others.
pub fn file_fault(path: &str, files: &BTreeMap<String, String>) -> Option<&'static str> {
    // First the path alone: what it lies below is only looked for along a short one.
    let below = || path.match_indices('/').any(|(at, _)| files.contains_key(&path[..at]));
    file_path_fault(path).or_else(|| below().then_some("lies below another file"))
}

/// Why a path may not be laid into a workspace.
pub fn file_path_fault(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.len() > FILE_PATH_BYTES_MAX || path.contains('\0') {
        return Some("is empty, too long, or contains a NUL byte");
    }
    if path.starts_with('/') {
        return Some("is absolute; files are relative to the workspace");
    }
    if path.split('/').any(|part| part.len() > FILE_NAME_BYTES_MAX) {
        return Some("has a part that is longer than 255 bytes");
    }
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    path.split('/').any(odd).then_some("has an empty, \".\" or \"..\" part")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(json: serde_json::Value) -> Vec<String> {
        match read_document(&json.into()) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.into_list().iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        let document = serde_json::json!({
            "apiVersion": "sodium.dev/v1", "kind": "Sandbx",
            "metadata": {"name": "Web", "lables": {}},
            "spec": {
                "isolation": "gvisr", "tty": "yes", "env": {"PORT": 80},
                "limits": {"memroy_mb": 1, "cpu_percent": -5},
                "restart": {"backoff": {"initial": "soon"}},
                "files": {"../x": ""}, "comand": []
            }
        });
        assert_eq!(
            faults_of(document),
            [
                r#"kind: is "Sandbx"; this daemon knows only "Sandbox""#,
                r#"metadata.lables: unknown field; did you mean "labels"?"#,
                r#"metadata.name: name has 'W' at byte 0; use a-z, 0-9 and inner '-'"#,
                r#"spec.comand: unknown field; did you mean "command"?"#,
                r#"spec.env.PORT: expected a text, found 80; put it in quotes"#,
                r#"spec.files.../x: has an empty, "." or ".." part"#,
                r#"spec.isolation: "gvisr" is not one of gvisor, bubblewrap, process; did you mean "gvisor"?"#,
                r#"spec.limits.cpu_percent: -5 is out of range: 0 to 102400"#,
                r#"spec.limits.memroy_mb: unknown field; did you mean "memory_mb"?"#,
                r#"spec.restart.backoff.initial: "soon" is not a duration like "10s" or "1m 30s""#,
                r#"spec.tty: expected true or false, found "yes""#,
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            faults_of(serde_json::json!({})),
            [
                r#"apiVersion: is missing; write "apiVersion: sodium.dev/v1""#,
                r#"kind: is missing; write "kind: Sandbox""#,
                "metadata.name: is missing",
            ]
        );
        assert_eq!(faults_of(serde_json::json!(7)).first().unwrap(), "expected a map, found 7");
    }

    #[test]
    fn what_could_not_be_read_is_not_missing() {
        assert_eq!(faults_of(serde_json::json!(7)), ["expected a map, found 7"]);
        assert_eq!(
            faults_of(serde_json::json!({
                "apiVersoin": "sodium.dev/v1", "kind": "Sandbox", "metadata": 7
            })),
            [
                r#"apiVersoin: unknown field; did you mean "apiVersion"?"#,
                "metadata: expected a map, found 7",
            ]
        );
        assert_eq!(
            faults_of(serde_json::json!({
                "apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"nmae": "web"}
            })),
            [r#"metadata.nmae: unknown field; did you mean "name"?"#]
        );
    }
}
