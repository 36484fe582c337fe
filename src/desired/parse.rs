//! One text to its documents, or to all of its faults.

use std::collections::BTreeSet;

use crate::desired::yaml;
use sodium_model::admission::{self, Admitted, Rules};
use sodium_model::tree::Faults;
use sodium_model::{Position, SandboxName, Violation};

/// Reads and admits every document. One bad document refuses the whole text, with the faults of all.
pub fn parse(bytes: &[u8], rules: &Rules) -> Result<Vec<Admitted>, Vec<Violation>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = before.matches('\n').count() as u64 + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) as u64 + 1;
        let fault = Violation::new("", "is not UTF-8; save the file as UTF-8");
        vec![fault.at(Some(Position { line, column }))]
    })?;
    let nodes = yaml::parse(text).map_err(|fault| vec![fault])?;
    let (mut admitted, mut names) = (Vec::new(), BTreeSet::new());
    let mut faults = Faults::default();
    for node in &nodes {
        // A name is taken even by a document that has other faults.
        let twice = |name: &SandboxName| {
            let is_known = !names.insert(name.clone());
            is_known.then(|| format!("{name} is declared twice in this file"))
        };
        match admission::admit_document(node, rules, twice) {
            Ok(next) => admitted.push(next),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(admitted) } else { Err(faults.into_list()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let image = serde_json::json!({
            "id": "javascript", "name": "JavaScript", "runtime": "node", "startup": "node {{MAIN_FILE}}",
            "variables": [{"name": "Main", "env": "MAIN_FILE", "required": true}]
        });
        Rules {
            images: [("javascript".to_owned(), serde_json::from_value(image).unwrap())].into(),
            ..Rules::strict()
        }
    }

    fn told(text: &str) -> Vec<String> {
        let faults = parse(text.as_bytes(), &rules()).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    /// A document of this name, whose spec begins on its fifth line.
    fn document(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {{name: {name}}}\nspec:\n{spec}"
        )
    }

    #[track_caller]
    fn check(spec: &str, want: &[&str]) {
        assert_eq!(told(&document("web", spec)), want);
    }

    const WEAK: &str = "spec.isolation: process is weaker than bubblewrap, the floor set by \
        \"isolation_floor\" in config.json";
    const UNKNOWN: &str = "spec.image: no image \"rubby\"; there are javascript";

    #[test]
    fn what_is_not_understood_and_what_is_not_allowed_are_told_together_where_they_stand() {
        let (unknown, weak) = (format!("5:10: {UNKNOWN}"), format!("6:14: {WEAK}"));
        check(
            "  image: rubby\n  colour: red\n",
            &[unknown.as_str(), "6:3: spec.colour: unknown field"],
        );
        check(
            "  limits: {memory_mb: lots}\n  isolation: process\n  command: [sh]\n",
            &[
                "5:23: spec.limits.memory_mb: expected a whole number, found \"lots\"",
                weak.as_str(),
            ],
        );
        check(
            "  command: [sh]\n  limits: {memory_mb: 129, cpu: 1}\n",
            &[
                "6:23: spec.limits.memory_mb: 129 is above 128, the ceiling set by \
                    \"maximum_limits.memory_mb\" in config.json",
                "6:28: spec.limits.cpu: unknown field",
            ],
        );
        check(
            "  image: javascript\n  env: {PORT: 80}\n",
            &[
                "6:3: spec.env.MAIN_FILE: is required by image \"javascript\"",
                "6:15: spec.env.PORT: expected a text, found 80; put it in quotes",
            ],
        );
    }

    #[test]
    fn a_field_that_could_not_be_read_is_told_once() {
        check("  command: 7\n", &["5:12: spec.command: expected a list, found 7"]);
        check("  comand: [sh]\n", &["5:3: spec.comand: unknown field; did you mean \"command\"?"]);
        check("  image: 7\n", &["5:10: spec.image: expected a text, found 7; put it in quotes"]);
        check(
            "  image: javascript\n  env: {MAIN_FILE: 80}\n",
            &["6:20: spec.env.MAIN_FILE: expected a text, found 80; put it in quotes"],
        );
        check(
            "  command: [sh]\n  restart: {backoff: {initial: soon, max: 100ms}}\n",
            &[
                "6:32: spec.restart.backoff.initial: \"soon\" is not a duration like \"10s\" or \"1m 30s\"",
            ],
        );
    }

    #[test]
    fn the_faults_of_all_documents_are_told_in_their_order() {
        let text = [
            document("a", "  command: [sh]\n  colour: red\n"),
            document("b", "  image: rubby\n"),
            document("a", "  isolation: process\n  tty: 1\n  command: [sh]\n"),
        ];
        let (unknown, weak) = (format!("12:10: {UNKNOWN}"), format!("18:14: {WEAK}"));
        assert_eq!(
            told(&text.join("---\n")),
            [
                "6:3: spec.colour: unknown field",
                unknown.as_str(),
                "16:18: metadata.name: a is declared twice in this file",
                weak.as_str(),
                "19:8: spec.tty: expected true or false, found 1",
            ]
        );
    }

    #[test]
    fn of_a_document_with_more_faults_than_are_told_no_other_is_looked_for() {
        let words = ["1"; 60].join(", ");
        let spec = format!("  isolation: process\n  command: [{words}]\n");
        let faults = told(&document("web", &spec));
        assert_eq!(faults.len(), 51);
        assert!(faults[0].starts_with("6:13: spec.command[0]: "), "{faults:?}");
        assert_eq!(faults[50], "6:163: and 10 more");
    }

    #[test]
    fn a_path_leads_to_its_value_or_to_where_it_would_be() {
        let text = "spec:\n  files:\n    a.b: x\n    a: y\n  image: none\n  command: [a, b]\n";
        let node = yaml::parse(text).unwrap().remove(0);
        let place = |path: &str| node.place_of(path).map(|at| (at.line, at.column));
        assert_eq!(place("spec.image"), Some((5, 10)));
        assert_eq!(place("spec.files.a.b"), Some((3, 10)));
        assert_eq!(place("spec.files.a"), Some((4, 8)));
        assert_eq!(place("spec.command[1]"), Some((6, 16)));
        assert_eq!(place("spec.command[7]"), Some((6, 3)), "the key of the list");
        assert_eq!(place("spec.limits.memory_mb"), Some((1, 1)), "the key that it would be below");
        assert_eq!(place("metadata"), node.at.map(|at| (at.line, at.column)));
    }
}
