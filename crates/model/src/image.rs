//! A runtime as `images/*.json` describes it: the defaults of whoever names it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::draft::{file_fault, is_variable};
use crate::spec::Limits;

/// Started ahead for one image, at most.
const WARM_COUNT_MAX: usize = 16;
/// Of an id and of a runtime: they are said in lists and compared with what was written.
const WORD_BYTES_MAX: usize = 64;

/// One image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// What specs call it.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it is for, for people.
    #[serde(default)]
    pub description: String,
    /// `node`, `python`, `bun`, `deno` or `bash`: what the seed's clients call it.
    pub runtime: String,
    /// The version of the runtime, for people.
    #[serde(default)]
    pub version: String,
    /// The name of a picture, for panels.
    #[serde(default)]
    pub icon: String,
    /// A color such as `#f7df1e`, for panels.
    #[serde(default)]
    pub color: String,
    /// The default command, with `{{VARIABLES}}`.
    pub startup: String,
    /// The file that its startup begins with, for panels.
    #[serde(default)]
    pub default_main: String,
    /// Defaults of this image, above those of config.json.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
    /// What its users may set.
    #[serde(default)]
    pub variables: Vec<Variable>,
    /// What would run once in a new workspace; read, and ignored so far.
    #[serde(default)]
    pub install: Option<Install>,
    /// How many gVisor sandboxes of this image are started ahead, for whoever wants one next.
    #[serde(default)]
    pub warm: usize,
    /// Laid into a new workspace, once.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// Something a user of the image may set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// What people call it.
    pub name: String,
    /// The variable of the environment.
    pub env: String,
    /// Its value where a spec says none.
    #[serde(default)]
    pub default: String,
    /// Whether it may not be empty.
    #[serde(default)]
    pub required: bool,
    /// What it is for, for people.
    #[serde(default)]
    pub description: String,
}

/// What runs once in a new workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// A shell script.
    pub script: String,
}

impl Image {
    /// The startup as words. Quotes group; variables are filled in later, inside their word.
    pub fn command(&self) -> Vec<String> {
        split_words(&self.startup)
    }

    /// Faults of the file, apart from its syntax.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (what, word) in [("id", &self.id), ("runtime", &self.runtime)] {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if word.is_empty() || word.len() > WORD_BYTES_MAX || !word.chars().all(is_plain) {
                faults.push(format!(
                    "{what} is not 1 to {WORD_BYTES_MAX} letters, digits, '-', '_' and '.'"
                ));
            }
        }
        for (name, value) in &self.limits {
            let max = Limits::max_of(name);
            if !Limits::ALL.contains(&name.as_str()) {
                faults.push(format!("limits.{name} is not a limit"));
            } else if *value > max {
                faults.push(format!("limits.{name} is {value}, the most is {max}"));
            }
        }
        for Variable { env, default, .. } in &self.variables {
            if !is_variable(env, default) {
                faults.push(format!("variables.{env} is not a possible environment variable"));
            }
        }
        for path in self.files.keys() {
            if let Some(fault) = file_fault(path, &self.files) {
                faults.push(format!("files.{path} {fault}"));
            }
        }
        if self.warm > WARM_COUNT_MAX {
            faults.push(format!("warm is {}, the most is {WARM_COUNT_MAX}", self.warm));
        }
        if self.command().first().is_none_or(String::is_empty) {
            faults.push("startup names no program".to_owned());
        }
        if self.startup.contains('\0') {
            faults.push("startup contains a NUL byte".to_owned());
        }
        faults
    }
}

/// Splits like a shell would, with quotes and without anything else.
pub fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for found in text.chars() {
        match (quote, found) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(found);
                word.get_or_insert_default();
            }
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[&str]) {
        assert_eq!(split_words(text), want);
    }

    #[test]
    fn startups_are_split_like_a_shell_would() {
        check("node {{MAIN_FILE}}", &["node", "{{MAIN_FILE}}"]);
        check("  bun   run 'a b.ts' \"\" ", &["bun", "run", "a b.ts", ""]);
        check("", &[]);
    }
}
