//! Conditions: what is true of a sandbox, one statement each, with its reason.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::bounded;
use crate::time::Time;

/// Bytes of a message.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// What a condition is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum ConditionType {
    /// The sandbox is as its spec wants it.
    Ready,
    /// The workload's program runs.
    Running,
    /// The spec in force is the newest that was written.
    SpecCurrent,
    /// Every limit asked for is kept by the kernel.
    LimitsEnforced,
    /// This host would start it as it is declared. Only there once it would not.
    Allowed,
    /// Every wall that the isolation promises stands.
    WallsEnforced,
}

/// True, false, or not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Truth {
    True,
    False,
    Unknown,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: Truth,
    /// Why, as one CamelCase word for programs.
    pub reason: String,
    /// Why, as a sentence for people.
    pub message: String,
    /// Since when the status is what it is.
    pub last_transition_time: Time,
    /// The edit of the spec that it speaks of.
    pub observed_generation: u64,
}

/// Puts `next` in place of the condition of its kind. The time of transition moves only with the
/// status, so that saying the same again changes nothing. It is never left in the future: what waits
/// for so long after it would wait for as long as a clock was wrong. Its message is bounded.
pub fn set(conditions: &mut Vec<Condition>, mut next: Condition) {
    next.message = bounded(next.message, MESSAGE_BYTES_MAX);
    match conditions.iter_mut().find(|old| old.kind == next.kind) {
        Some(old) => {
            if old.status == next.status {
                let since = old.last_transition_time.min(next.last_transition_time);
                next.last_transition_time = since;
            }
            *old = next;
        }
        None => conditions.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bounded_and_saying_it_again_changes_nothing() {
        let said = |at| Condition {
            kind: ConditionType::Ready,
            status: Truth::False,
            reason: "Odd".to_owned(),
            message: "é\u{9b}".repeat(10_000),
            last_transition_time: Time(at),
            observed_generation: 1,
        };
        let mut conditions = Vec::new();
        set(&mut conditions, said(1));
        assert!(
            conditions[0].message.len() <= MESSAGE_BYTES_MAX,
            "{}",
            conditions[0].message.len()
        );
        assert!(!conditions[0].message.contains('\u{9b}'));
        let before = conditions.clone();
        set(&mut conditions, said(2));
        assert_eq!(conditions, before);
    }
}
