//! One document of a text, put in or taken out. Pure.
//!
//! The text is cut where YAML cuts it: at lines that begin with `---`, and after those that are `...`. What is
//! not of the one document stays as it was, byte for byte, with all comments; and whether it really did is
//! checked by reading both texts, so that a cut in the wrong place is refused and not written.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::desired::yaml;
use sodium_model::draft::{self, Draft};
use sodium_model::tree::{Node, Value};
use sodium_model::{SandboxName, Violation};

/// A text with a document put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub text: String,
    /// Whether it took the place of an older one.
    pub replaced: bool,
}

/// What taking a document out leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Removed {
    /// It was not there.
    Absent,
    /// No other document.
    Nothing,
    Text(String),
}

/// Puts `document`, which declares `name` and ends with a line break, in the place of the one that does, or
/// at the end.
pub(super) fn put(text: &str, name: &SandboxName, document: &str) -> Result<Put, Violation> {
    check_lines(text, name)?;
    let nodes = yaml::parse(text)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let found = part_of(&nodes, &lines, name)?;
    let edited = match &found {
        // Its own comments before its first line stay too.
        Some(part) => {
            let marker = if part.marked_in_body { "---\n" } else { "" };
            let (before, after) = (&lines[..part.body.start], &lines[part.body.end..]);
            format!("{}{marker}{document}{}", before.concat(), after.concat())
        }
        None => {
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            let marker = if nodes.is_empty() { "" } else { "---\n" };
            [text, end, marker, document].concat()
        }
    };
    let after = yaml::parse(&edited)?;
    let declared = after.iter().filter(|node| is_named(node, name)).count();
    if declared != 1 || others(&nodes, name) != others(&after, name) {
        return Err(not_told_apart(name));
    }
    Ok(Put { text: edited, replaced: found.is_some() })
}

/// Takes out the document that declares `name`.
pub(super) fn remove(text: &str, name: &SandboxName) -> Result<Removed, Violation> {
    check_lines(text, name)?;
    let nodes = yaml::parse(text)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let Some(part) = part_of(&nodes, &lines, name)? else { return Ok(Removed::Absent) };
    if nodes.iter().all(|node| is_named(node, name)) {
        return Ok(Removed::Nothing);
    }
    let edited = [lines[..part.marker].concat(), lines[part.body.end..].concat()].concat();
    let after = yaml::parse(&edited)?;
    let left = after.iter().any(|node| is_named(node, name));
    if left || others(&nodes, name) != others(&after, name) {
        return Err(not_told_apart(name));
    }
    Ok(Removed::Text(edited))
}

/// YAML ends a line after a carriage return alone, and nothing else here does.
fn check_lines(text: &str, name: &SandboxName) -> Result<(), Violation> {
    let mut returns = text.match_indices('\r');
    let is_alone = returns.any(|(at, _)| !text[at + 1..].starts_with('\n'));
    if is_alone { Err(not_told_apart(name)) } else { Ok(()) }
}

fn not_told_apart(name: &SandboxName) -> Violation {
    let message = format!("the document of {name} cannot be told from the others; edit the file");
    Violation::new("", message)
}

/// The lines of one document.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    /// Its `---`, or where its body begins if it has none.
    marker: usize,
    /// From its first to its last line that is no comment.
    body: Range<usize>,
    /// Whether the body begins on the line of the `---`.
    marked_in_body: bool,
}

/// Where the document is that declares `name`.
fn part_of(nodes: &[Node], lines: &[&str], name: &SandboxName) -> Result<Option<Part>, Violation> {
    let Some(node) = nodes.iter().find(|node| is_named(node, name)) else { return Ok(None) };
    let line = node.at.and_then(|at| usize::try_from(at.line).ok()?.checked_sub(1));
    let range = line.and_then(|line| ranges(lines).into_iter().find(|range| range.contains(&line)));
    range.map(|range| Some(part(lines, range))).ok_or_else(|| not_told_apart(name))
}

/// The lines of each document, with what is between it and the one before.
fn ranges(lines: &[&str]) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut begun) = (Vec::new(), 0, false);
    for (index, line) in lines.iter().enumerate() {
        match Line::of(line) {
            Line::Start { .. } if begun => {
                ranges.push(start..index);
                start = index;
            }
            Line::Start { .. } | Line::Text => begun = true,
            Line::End => {
                ranges.push(start..index + 1);
                (start, begun) = (index + 1, false);
            }
            Line::Comment { .. } | Line::Directive => (),
        }
    }
    ranges.push(start..lines.len());
    ranges
}

fn part(lines: &[&str], range: Range<usize>) -> Part {
    let kinds: Vec<Line> = lines[range.clone()].iter().map(|line| Line::of(line)).collect();
    let marker = kinds.iter().position(|kind| matches!(kind, Line::Start { .. }));
    let body = kinds.iter().position(|kind| match kind {
        Line::Start { bare } => !bare,
        Line::Text => true,
        // After its `---` a document may begin with a `%`.
        Line::Directive => marker.is_none(),
        Line::Comment { .. } | Line::End => false,
    });
    let body = body.unwrap_or(kinds.len());
    let marked_in_body = kinds.get(body).is_some_and(|kind| matches!(kind, Line::Start { .. }));
    let end = kinds.iter().rposition(|kind| match kind {
        Line::Start { .. } | Line::Text | Line::Directive => true,
        // What is indented may be of a text in the document.
        Line::Comment { indented } => *indented,
        Line::End => false,
    });
    let end = end.map_or(body, |end| end + 1).max(body);
    let at = |index: usize| range.start + index;
    Part { marker: at(marker.unwrap_or(body)), body: at(body)..at(end), marked_in_body }
}

/// What a line is to the cutting of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// `---`; `bare` without anything but a comment after it.
    Start {
        bare: bool,
    },
    /// `...`
    End,
    /// Or nothing at all.
    Comment {
        indented: bool,
    },
    Directive,
    Text,
}

impl Line {
    fn of(line: &str) -> Self {
        let line = line.trim_start_matches('\u{feff}').trim_end();
        let after = |marker: &'static str| {
            let rest: &str = line.strip_prefix(marker)?;
            (rest.is_empty() || rest.starts_with([' ', '\t'])).then(|| rest.trim_start())
        };
        let is_bare = |text: &str| text.is_empty() || text.starts_with('#');
        if let Some(rest) = after("---") {
            Self::Start { bare: is_bare(rest) }
        } else if after("...").is_some() {
            Self::End
        } else if is_bare(line.trim_start()) {
            Self::Comment { indented: line.starts_with([' ', '\t']) }
        } else if line.starts_with('%') {
            Self::Directive
        } else {
            Self::Text
        }
    }
}

/// Whether a document, be it at fault, says that it is about `name`.
fn is_named(node: &Node, name: &SandboxName) -> bool {
    let named = field(node, "metadata").and_then(|metadata| field(metadata, "name"));
    named.is_some_and(|named| matches!(&named.value, Value::Text(text) if text == name.as_str()))
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
}

type Said = (SandboxName, BTreeMap<String, String>, Draft);

/// What all documents but that of `name` say; nothing of those that are at fault.
fn others(nodes: &[Node], name: &SandboxName) -> Vec<Option<Said>> {
    let said = |node: &Node| {
        let document = draft::read_document(node).ok()?;
        Some((document.name, document.labels, document.draft))
    };
    nodes.iter().filter(|node| !is_named(node, name)).map(said).collect()
}

#[cfg(test)]
mod tests;
