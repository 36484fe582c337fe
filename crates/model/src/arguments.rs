//! What a program is started with, command and environment: how variables get into the command, and how
//! much of it a kernel takes.

use std::collections::BTreeMap;

use crate::violation::Violation;

/// Bytes of one word, and of one variable with its name: MAX_ARG_STRLEN of the kernel, its end included.
pub const WORD_BYTES_MAX: usize = (128 << 10) - 1;
/// Bytes of all of them, with a pointer and an end each: a quarter of the usual stack is what the kernel
/// takes, less some room for what the daemon adds.
const ALL_BYTES_MAX: usize = (2 << 20) - (64 << 10);
/// A pointer and an end.
const WORD_COST: usize = 9;

/// Replaces `{{NAME}}` by the variable of that name. Words are never split again, so that a value cannot
/// become two arguments.
///
/// Guarantees: what comes back is within what [`fault`] admits. Variables that would lead beyond it stay
/// as they are written.
pub fn resolve(command: &[String], env: &BTreeMap<String, String>) -> Vec<String> {
    let mut left = ALL_BYTES_MAX;
    let within = |word: &String| {
        let length = resolved_length(word, env);
        if length > WORD_BYTES_MAX || length > left {
            return word.clone();
        }
        left -= length;
        let mut out = String::with_capacity(length);
        pieces(word, env, |piece| out.push_str(piece));
        out
    };
    command.iter().map(within).collect()
}

/// Why no kernel would start a program with this, or nothing. `env` is what the command is resolved with.
pub fn fault(command: &[String], env: &BTreeMap<String, String>) -> Option<Violation> {
    faulty(command.iter().map(|word| resolved_length(word, env)), env)
}

/// The same of a command that is taken as it is.
pub fn plain_fault(command: &[String], env: &BTreeMap<String, String>) -> Option<Violation> {
    faulty(command.iter().map(String::len), env)
}

fn faulty(words: impl Iterator<Item = usize>, env: &BTreeMap<String, String>) -> Option<Violation> {
    let mut all = 0_usize;
    for (index, length) in words.enumerate() {
        if length > WORD_BYTES_MAX {
            let message =
                format!("is {length} bytes with its variables, the most is {WORD_BYTES_MAX}");
            return Some(Violation::new(format!("command[{index}]"), message));
        }
        all = all.saturating_add(length + WORD_COST);
    }
    for (name, value) in env {
        let length = name.len() + 1 + value.len();
        if length > WORD_BYTES_MAX {
            let message = format!("is {length} bytes with its name, the most is {WORD_BYTES_MAX}");
            return Some(Violation::new(format!("env.{name}"), message));
        }
        all = all.saturating_add(length + WORD_COST);
    }
    (all > ALL_BYTES_MAX).then(|| {
        let message = format!(
            "is {all} bytes with its variables and the environment, the most is {ALL_BYTES_MAX}"
        );
        Violation::new("command", message)
    })
}

/// Counted before anything is made: a short word may name a long variable thousands of times.
fn resolved_length(word: &str, env: &BTreeMap<String, String>) -> usize {
    let mut length = 0_usize;
    pieces(word, env, |piece| length = length.saturating_add(piece.len()));
    length
}

/// Tells piece by piece what becomes of a word.
fn pieces<'w>(word: &'w str, env: &'w BTreeMap<String, String>, mut each: impl FnMut(&'w str)) {
    let mut rest = word;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, behind)) = after.split_once("}}") else { break };
        each(before);
        match env.get(name.trim()) {
            Some(value) => each(value),
            // Not ours: templates of other languages look the same.
            None => ["{{", name, "}}"].into_iter().for_each(&mut each),
        }
        rest = behind;
    }
    each(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(value: &str) -> BTreeMap<String, String> {
        [("MAIN".to_owned(), value.to_owned())].into()
    }

    #[track_caller]
    fn check(word: &str, want: &str) {
        assert_eq!(resolve(&[word.to_owned()], &env("a b.js")), [want]);
    }

    #[test]
    fn variables_are_replaced_once_and_unknown_ones_left() {
        check("{{MAIN}}", "a b.js");
        check("x{{ MAIN }}y", "xa b.jsy");
        check("{{OTHER}}", "{{OTHER}}");
        check("{{MAIN", "{{MAIN");
        check("plain", "plain");
    }

    #[test]
    fn a_word_is_counted_before_it_is_made() {
        let full = |bytes: usize| fault(&["{{MAIN}}".to_owned()], &env(&"x".repeat(bytes)));
        // With `MAIN=` before it, the variable is longer than the word.
        assert_eq!(full(WORD_BYTES_MAX - 5), None);
        assert_eq!(full(WORD_BYTES_MAX - 4).unwrap().path, "env.MAIN");
        let many = ["{{MAIN}}".repeat(60_000)];
        let env = env(&"x".repeat(60_000));
        let found = fault(&many, &env).unwrap();
        assert_eq!(found.path, "command[0]");
        assert!(found.message.starts_with("is 3600000000 bytes"), "{found}");
        // Whoever asks all the same gets no more than was written.
        assert_eq!(resolve(&many, &env), many);
        assert!(plain_fault(&many, &env).unwrap().message.starts_with("is 480000 bytes"));
    }

    #[test]
    fn all_words_together_are_bounded() {
        let env = env(&"x".repeat(100_000));
        let words = |count| vec!["{{MAIN}}".to_owned(); count];
        assert_eq!(fault(&words(18), &env), None);
        let found = fault(&words(40_000), &env).unwrap();
        assert_eq!(found.path, "command");
        let all: usize = resolve(&words(40_000), &env).iter().map(String::len).sum();
        assert!(all < ALL_BYTES_MAX + 40_000 * 8, "{all}");
        // Nor are words that are nothing for nothing.
        assert_eq!(fault(&vec![String::new(); 300_000], &env).unwrap().path, "command");
    }
}
