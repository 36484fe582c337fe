//! One text to its documents, or to all of its faults.

use std::collections::BTreeMap;

use crate::desired::yaml;
use crate::model::admission::{self, Rules};
use crate::model::draft::{self, Document};
use crate::model::tree::{Faults, Node};
use crate::model::{Position, SandboxName, Spec, Violation};

/// One sandbox that a text declares.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub name: SandboxName,
    pub labels: BTreeMap<String, String>,
    pub spec: Spec,
}

/// Reads and admits every document. One bad document refuses the whole text.
pub fn parse(bytes: &[u8], rules: &Rules) -> Result<Vec<Parsed>, Vec<Violation>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = before.matches('\n').count() as u64 + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) as u64 + 1;
        let fault = Violation::new("", "is not UTF-8; save the file as UTF-8");
        vec![fault.at(Some(Position { line, column }))]
    })?;
    let nodes = yaml::parse(text).map_err(|fault| vec![fault])?;
    let mut parsed: Vec<Parsed> = Vec::new();
    let mut faults = Faults::default();
    for node in &nodes {
        match draft::read_document(node) {
            Err(found) => faults.extend(found),
            Ok(document) => match admit(node, &document, rules) {
                Err(found) => faults.extend(found),
                Ok(next) if parsed.iter().any(|known| known.name == next.name) => {
                    let message = format!("{} is declared twice in this file", next.name);
                    faults.push(Violation::new("metadata.name", message).at(document.at));
                }
                Ok(next) => parsed.push(next),
            },
        }
    }
    if faults.is_empty() { Ok(parsed) } else { Err(faults.into_list()) }
}

fn admit(node: &Node, document: &Document, rules: &Rules) -> Result<Parsed, Faults> {
    let spec = admission::admit(&document.draft, rules).map_err(|found| {
        let mut faults = Faults::default();
        for fault in found {
            let place = node.place_of(&fault.path);
            faults.push(fault.at(place));
        }
        faults.at(document.at)
    })?;
    Ok(Parsed { name: document.name.clone(), labels: document.labels.clone(), spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_value_or_to_where_it_would_be() {
        let text = "spec:\n  files:\n    a.b: x\n    a: y\n  image: none\n";
        let node = yaml::parse(text).unwrap().remove(0);
        let place = |path: &str| node.place_of(path).map(|at| (at.line, at.column));
        assert_eq!(place("spec.image"), Some((5, 10)));
        assert_eq!(place("spec.files.a.b"), Some((3, 10)));
        assert_eq!(place("spec.files.a"), Some((4, 8)));
        assert_eq!(place("spec.limits.memory_mb"), Some((1, 1)), "the key that it would be below");
        assert_eq!(place("metadata"), node.at.map(|at| (at.line, at.column)));
    }
}
