//! A document as it was written: values with their places, before anything is known of their
//! meaning. YAML and JSON both become this, so that one reader serves both and can go on after the
//! first fault.

use crate::model::violation::{Position, Violation, suggestion};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub at: Option<Position>,
}

/// What can be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order written. Duplicate keys have been refused before.
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    pub at: Option<Position>,
}

impl Node {
    /// What it is, for messages.
    pub fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) if text.len() <= 40 => format!("{text:?}"),
            Value::Text(_) => "a text".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }
}

impl From<serde_json::Value> for Node {
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => number
                .as_i64()
                .map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::INFINITY)), Value::Int),
            Json::String(text) => Value::Text(text),
            Json::Array(list) => Value::List(list.into_iter().map(Self::from).collect()),
            Json::Object(map) => Value::Map(
                map.into_iter().map(|(name, node)| (Key { name, at: None }, node.into())).collect(),
            ),
        };
        Self { value, at: None }
    }
}

/// Reads a tree and collects what is wrong with it.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<Violation>);

impl Faults {
    pub fn add(&mut self, path: &str, node: &Node, message: impl Into<String>) {
        self.0.push(Violation::new(path, message).at(node.at));
    }

    fn expected(&mut self, path: &str, node: &Node, what: &str) {
        self.add(path, node, format!("expected {what}, found {}", node.kind()));
    }

    pub fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Null => {
                let hint =
                    if node.value == Value::Null { "write \"\"" } else { "put it in quotes" };
                self.add(path, node, format!("expected a text, found {}; {hint}", node.kind()));
            }
            Value::List(_) | Value::Map(_) => self.expected(path, node, "a text"),
        }
        None
    }

    pub fn bool(&mut self, path: &str, node: &Node) -> Option<bool> {
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.expected(path, node, "true or false");
        None
    }

    /// A whole number from `0` to `max`.
    pub fn count(&mut self, path: &str, node: &Node, max: u64) -> Option<u64> {
        match node.value {
            Value::Int(value) => match u64::try_from(value) {
                Ok(value) if value <= max => return Some(value),
                _ => self.add(path, node, format!("{value} is out of range: 0 to {max}")),
            },
            Value::Null
            | Value::Bool(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => self.expected(path, node, "a whole number"),
        }
        None
    }

    pub fn list<'n>(&mut self, path: &str, node: &'n Node) -> &'n [Node] {
        if let Value::List(list) = &node.value {
            return list;
        }
        self.expected(path, node, "a list");
        &[]
    }

    pub fn map<'n>(&mut self, path: &str, node: &'n Node) -> &'n [(Key, Node)] {
        if let Value::Map(map) = &node.value {
            return map;
        }
        self.expected(path, node, "a map");
        &[]
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, path: &str, node: &Node, known: &[(&str, T)]) -> Option<T> {
        let word = self.text(path, node)?;
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == word) {
            return Some(*value);
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let hint = suggestion(&word, names.iter().copied());
        self.add(path, node, format!("{word:?} is not one of {}{hint}", names.join(", ")));
        None
    }

    /// Calls `field` for each known key; the others are faults.
    pub fn fields<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        known: &[&str],
        mut field: impl FnMut(&mut Self, &str, &str, &'n Node),
    ) {
        for (key, value) in self.map(path, node) {
            let inner = join(path, &key.name);
            if known.contains(&key.name.as_str()) {
                field(self, &key.name, &inner, value);
            } else {
                let hint = suggestion(&key.name, known.iter().copied());
                self.0.push(Violation::new(inner, format!("unknown field{hint}")).at(key.at));
            }
        }
    }
}

/// `spec` and `tty` make `spec.tty`.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
