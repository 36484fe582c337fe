//! YAML to trees and back: the only module that knows the YAML library.
//!
//! Budgets bound what a document may cost before it is looked at; duplicate keys, unknown tags and
//! YAML 1.1's booleans are refused.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_yaml::{DuplicateKeyPolicy, Options, Spanned};

use sodium_model::tree::{Key, Node, Value};
use sodium_model::{Position, Violation};

/// Documents in one file.
const DOCUMENT_COUNT_MAX: usize = 64;
/// Values, keys included, in one file.
const NODE_COUNT_MAX: usize = 20_000;
/// Text of all values together, aliases counted each time.
const SCALAR_BYTES_MAX: usize = 1 << 20;
/// Anchors and uses of them.
const ALIAS_COUNT_MAX: usize = 64;
const DEPTH_MAX: usize = 32;

/// All documents of a text, or its first fault: after one, the rest has no certain meaning.
pub fn parse(text: &str) -> Result<Vec<Node>, Violation> {
    let documents: Result<Vec<Spanned<Wild>>, _> =
        serde_yaml::from_multiple_with_options(text, options());
    match documents {
        Ok(documents) => Ok(documents.into_iter().map(node).collect()),
        Err(error) => {
            let at = error
                .location()
                .map(|place| Position { line: place.line(), column: place.column() });
            let whole = error.to_string();
            // The rest is a picture of the source, which may hold secrets, and is ours to draw.
            let line = whole.lines().next().unwrap_or_default();
            let message = line.trim_start_matches("error: ");
            let message = match message.split_once(": ") {
                Some((place, rest)) if place.starts_with("line ") => rest,
                _ => message,
            };
            Err(Violation::new("", message).at(at))
        }
    }
}

/// Writes a value as YAML.
pub fn write(value: &impl serde::Serialize) -> String {
    serde_yaml::to_string(value).unwrap_or_else(|error| format!("# cannot be written: {error}\n"))
}

fn options() -> Options {
    let mut options = Options::default();
    options.budget = serde_yaml::budget! {
        max_documents: DOCUMENT_COUNT_MAX,
        max_nodes: NODE_COUNT_MAX,
        max_total_scalar_bytes: SCALAR_BYTES_MAX,
        max_aliases: ALIAS_COUNT_MAX,
        max_anchors: ALIAS_COUNT_MAX,
        max_depth: DEPTH_MAX,
    };
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options.strict_booleans = true;
    options.reject_unsupported_tags = true;
    options.with_snippet = false;
    options
}

/// Any value, with the places of those inside it.
enum Wild {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Wild>>),
    Map(Vec<(Spanned<String>, Spanned<Wild>)>),
}

fn node(spanned: Spanned<Wild>) -> Node {
    let at = position(&spanned);
    let value = match spanned.value {
        Wild::Null => Value::Null,
        Wild::Bool(value) => Value::Bool(value),
        Wild::Int(value) => Value::Int(value),
        Wild::Float(value) => Value::Float(value),
        Wild::Text(text) => Value::Text(text),
        Wild::List(list) => Value::List(list.into_iter().map(node).collect()),
        Wild::Map(map) => Value::Map(map.into_iter().map(entry).collect()),
    };
    Node { value, at }
}

fn entry((key, value): (Spanned<String>, Spanned<Wild>)) -> (Key, Node) {
    let at = position(&key);
    (Key { name: key.value, at }, node(value))
}

fn position<T>(spanned: &Spanned<T>) -> Option<Position> {
    let place = spanned.referenced;
    (place.line() > 0).then(|| Position { line: place.line(), column: place.column() })
}

impl<'de> Deserialize<'de> for Wild {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WildVisitor)
    }
}

struct WildVisitor;

impl<'de> Visitor<'de> for WildVisitor {
    type Value = Wild;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Wild, E> {
        Ok(Wild::Null)
    }

    fn visit_none<E>(self) -> Result<Wild, E> {
        Ok(Wild::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Wild, D::Error> {
        Wild::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Wild, E> {
        Ok(Wild::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Wild, E> {
        Ok(Wild::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Wild, E> {
        // As in JSON: whoever wants a count refuses it, and knows where it stands.
        Ok(i64::try_from(value).map_or(Wild::Float(value as f64), Wild::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Wild, E> {
        Ok(Wild::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Wild, E> {
        Ok(Wild::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Wild, E> {
        Ok(Wild::Text(text))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Wild, E> {
        Err(E::custom("binary values have no use here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Wild, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element()? {
            nodes.push(node);
        }
        Ok(Wild::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Wild, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Wild>)> = Vec::new();
        let mut known = HashSet::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Wild>>()? {
            if !known.insert(key.value.clone()) {
                return Err(A::Error::custom(format!("duplicate key {:?}", key.value)));
            }
            entries.push((key, value));
        }
        Ok(Wild::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn values_keep_their_kinds_and_places() {
        let nodes = parse("a: 1\nb: [x, true]\n---\nc: \"no\"\nd: no\n").unwrap();
        assert_eq!(nodes.len(), 2);
        let Value::Map(first) = &nodes[0].value else { panic!("{nodes:?}") };
        assert_eq!(first[0].1.value, Value::Int(1));
        assert_eq!(first[1].0.at, Some(Position { line: 2, column: 1 }));
        let Value::List(list) = &first[1].1.value else { panic!("{first:?}") };
        assert_eq!((&list[1].value, list[1].at.unwrap().column), (&Value::Bool(true), 8));
        let Value::Map(second) = &nodes[1].value else { panic!("{nodes:?}") };
        assert_eq!(second[0].1.value, Value::Text("no".to_owned()));
        assert_eq!(second[1].1.value, Value::Text("no".to_owned()));
        assert_eq!(second[1].0.at.unwrap().line, 5);
    }

    #[test]
    fn a_byte_order_mark_is_no_fault_and_an_empty_text_no_document() {
        assert_eq!(parse("\u{feff}a: 1\n").unwrap().len(), 1);
        assert_eq!(parse("# nothing\n").unwrap().len(), 0);
    }

    #[test]
    fn duplicate_keys_are_refused_where_they_stand() {
        let text = fault("env:\n  A: x\n  B: y\n  A: z\n");
        assert!(text.starts_with("4:3: ") && text.contains("duplicate"), "{text}");
    }

    #[test]
    fn a_duplicate_is_found_among_as_many_keys_as_there_may_be() {
        let keys = NODE_COUNT_MAX / 2 - 10;
        let text: String = (0..keys).map(|n| format!("key_{n}: 1\n")).collect();
        let nodes = parse(&text).unwrap();
        let Value::Map(map) = &nodes[0].value else { panic!("{nodes:?}") };
        assert_eq!(map.len(), keys);
        assert!(fault(&format!("{text}key_7: 2\n")).contains("duplicate"));
    }

    #[test]
    fn bombs_are_refused_before_they_go_off() {
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (last, next) in
            ["a", "b", "c", "d", "e", "f", "g"].windows(2).map(|two| (two[0], two[1]))
        {
            let uses = vec![format!("*{last}"); 10].join(", ");
            laughs.push_str(&format!("{next}: &{next} [{uses}]\n"));
        }
        assert!(fault(&laughs).contains("budget"), "{}", fault(&laughs));
        let quadratic = format!("a: &a {}\nb: [{}]\n", "x".repeat(80_000), "*a, ".repeat(50));
        assert!(fault(&quadratic).contains("budget"), "{}", fault(&quadratic));
        fault(&"[".repeat(20_000));
        fault("a: !!python/object:os.system x\n");
    }
}
