//! The user's faults, as values. A document has all of its faults reported together.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::bounded;

/// Bytes of a path and of a message; what they quote may be a whole document.
pub(super) const PATH_BYTES_MAX: usize = 256;
const MESSAGE_BYTES_MAX: usize = 1024;

/// A place in a text, counted from one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Position {
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
}

/// One thing wrong with what somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Violation {
    /// Where in the document: `spec.limits.memory_mb`; empty for the document itself. Of 256 bytes at most.
    pub path: String,
    /// What is wrong, for people, of 1024 bytes at most.
    pub message: String,
    /// Where in the text, if it has lines.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Position>,
}

impl Violation {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        let path = bounded(path, PATH_BYTES_MAX);
        Self { path, message: bounded(message, MESSAGE_BYTES_MAX), at: None }
    }

    /// The same fault in a part of the document.
    pub fn below(self, path: &str) -> Self {
        Self { path: bounded(format!("{path}.{}", self.path), PATH_BYTES_MAX), ..self }
    }

    pub fn at(mut self, position: Option<Position>) -> Self {
        self.at = position;
        self
    }
}

/// `12:3: spec.tty: expected true or false`, without what is not known.
impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.at {
            write!(out, "{line}:{column}: ")?;
        }
        if !self.path.is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        out.write_str(&self.message)
    }
}

/// Nobody means a longer word than this.
const MEANT_BYTES_MAX: usize = 64;
/// Of so many that might be meant, each is compared.
const MEANT_COUNT_MAX: usize = 64;

/// `; did you mean "x"?`, if one of `known` is near enough to be what was meant.
pub fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    did_you_mean(nearest(word, known))
}

/// A suggestion of what was meant, if anything was.
pub fn did_you_mean(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"))
}

/// The one of `known` that is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    let near = known
        .into_iter()
        // The distance takes memory for each pair of characters, and is no less than this.
        .filter(|candidate| candidate.len() <= MEANT_BYTES_MAX)
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= slack(candidate))
        .take(MEANT_COUNT_MAX)
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= slack(candidate))
        .min();
    near.map(|(_, candidate)| candidate)
}

/// How many letters may be wrong.
fn slack(candidate: &str) -> usize {
    candidate.len().max(3) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["memory_mb", "cpu_percent", "tty"];
        assert_eq!(suggestion("memroy_mb", known), "; did you mean \"memory_mb\"?");
        assert_eq!(suggestion("ttty", known), "; did you mean \"tty\"?");
        assert_eq!(suggestion("color", known), "");
    }
}
