//! A document as it was written: values with their places, before anything is known of their
//! meaning. YAML and JSON both become this, so that one reader serves both and can go on after the
//! first fault.

use crate::text::bounded;
use crate::violation::{PATH_BYTES_MAX, Position, Violation, did_you_mean, nearest, suggestion};

/// Faults reported of one document, in number and in bytes; of the others only how many there are.
const FAULT_COUNT_MAX: usize = 50;
const FAULT_BYTES_MAX: usize = 24 * 1024;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub at: Option<Position>,
}

impl Node {
    /// Where this path leads, such as `spec.limits.memory_mb`; of what is not there, where it would be.
    pub fn place_of(&self, path: &str) -> Option<Position> {
        self.follow(path).0
    }

    /// That place, and the way to it: of each map and list on it, which entry. Ways are in the order of what they
    /// lead to, also in JSON, where no place is known.
    fn follow(&self, path: &str) -> (Option<Position>, Vec<usize>) {
        let (mut node, mut rest, mut place) = (self, path, self.at);
        let mut way = Vec::new();
        while let Some(step) = node.step(rest) {
            place = if step.rest.is_empty() { step.node.at } else { step.at };
            way.push(step.index);
            (node, rest) = (step.node, step.rest.strip_prefix('.').unwrap_or(step.rest));
        }
        (place, way)
    }

    /// The entry of this map or list that a path begins with.
    fn step<'n, 'p>(&'n self, path: &'p str) -> Option<Step<'n, 'p>> {
        match &self.value {
            Value::Map(map) => {
                let steps = map.iter().enumerate().filter_map(|(index, (key, node))| {
                    let rest = path.strip_prefix(key.name.as_str())?;
                    let fits = rest.is_empty() || rest.starts_with(['.', '[']);
                    fits.then_some((key.name.len(), Step { index, node, at: key.at, rest }))
                });
                // A key may have points of its own.
                steps.max_by_key(|(length, _)| *length).map(|(_, step)| step)
            }
            Value::List(list) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let index: usize = index.parse().ok()?;
                let node = list.get(index)?;
                Some(Step { index, node, at: node.at, rest })
            }
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => None,
        }
    }
}

/// From a map or a list to one of its entries.
struct Step<'n, 'p> {
    index: usize,
    node: &'n Node,
    /// Where the entry begins: its key, if it has one.
    at: Option<Position>,
    /// The path from there.
    rest: &'p str,
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

/// Beyond this, a float has no place for ones.
const FLOAT_MAX: f64 = (1_u64 << 53) as f64;

impl Node {
    /// The number, if it is a whole one. Some write 5 as 5.0, which is the same number in JSON.
    fn whole(&self) -> Option<i64> {
        match self.value {
            Value::Int(value) => Some(value),
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and small enough")]
            Value::Float(value) if value.fract() == 0.0 && value.abs() <= FLOAT_MAX => {
                Some(value as i64)
            }
            Value::Null
            | Value::Bool(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => None,
        }
    }

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

/// Reads a tree and collects what is wrong with it: the first faults, and how many more there are.
#[derive(Debug, Default, PartialEq)]
pub struct Faults {
    first: Vec<Violation>,
    bytes: usize,
    more: usize,
    /// Where the first of those stands that are only counted.
    more_at: Option<Position>,
    /// Known fields that unknown ones were probably meant to be.
    meant: Vec<String>,
}

impl Faults {
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub fn push(&mut self, fault: Violation) {
        let bytes = self.bytes + fault.path.len() + fault.message.len();
        if self.is_full() || bytes > FAULT_BYTES_MAX {
            self.count_more(1, fault.at);
        } else {
            self.bytes = bytes;
            self.first.push(fault);
        }
    }

    /// Whether all others are only counted.
    fn is_full(&self) -> bool {
        self.more > 0 || self.first.len() == FAULT_COUNT_MAX
    }

    fn count_more(&mut self, count: usize, at: Option<Position>) {
        self.more_at = self.more_at.or(at);
        self.more += count;
    }

    /// Adds those of another part.
    pub fn extend(&mut self, other: Self) {
        for fault in other.first {
            self.push(fault);
        }
        if other.more > 0 {
            self.count_more(other.more, other.more_at);
        }
    }

    /// Gives those a place that have none.
    pub fn at(mut self, place: Option<Position>) -> Self {
        for fault in &mut self.first {
            fault.at = fault.at.or(place);
        }
        self.more_at = self.more_at.or(place);
        self
    }

    /// Whether a fault is at this path, in it, or in what it is a part of: nothing more can be said of it then. While
    /// faults are only counted, that may be so of any path.
    pub fn touch(&self, path: &str) -> bool {
        let mut known = self.first.iter().map(|fault| &fault.path).chain(&self.meant);
        self.more > 0 || known.any(|known| leads_to(known, path) || leads_to(path, known))
    }

    /// Together with those found once `node` was known as a whole, all in the order in which they stand in it.
    pub fn and_later(self, later: impl IntoIterator<Item = Violation>, node: &Node) -> Self {
        let mut list = self.first;
        list.extend(later.into_iter().map(|fault| {
            let place = fault.at.or_else(|| node.place_of(&fault.path)).or(node.at);
            fault.at(place)
        }));
        list.sort_by_cached_key(|fault| (fault.at, node.follow(&fault.path).1));
        let mut all = Self { meant: self.meant, ..Self::default() };
        for fault in list {
            all.push(fault);
        }
        if self.more > 0 {
            all.count_more(self.more, self.more_at);
        }
        all
    }

    /// The faults, the last of which may be that there are more.
    pub fn into_list(self) -> Vec<Violation> {
        let mut list = self.first;
        if self.more > 0 {
            list.push(Violation::new("", format!("and {} more", self.more)).at(self.more_at));
        }
        list
    }

    pub fn add(&mut self, path: &str, node: &Node, message: impl Into<String>) {
        // There may be a million of them.
        if self.is_full() {
            self.count_more(1, node.at);
        } else {
            self.push(Violation::new(path, message).at(node.at));
        }
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
        let Some(value) = node.whole() else {
            self.expected(path, node, "a whole number");
            return None;
        };
        match u64::try_from(value) {
            Ok(value) if value <= max => return Some(value),
            _ => self.add(path, node, format!("{value} is out of range: 0 to {max}")),
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

    /// Calls `field` for each known key; the others are faults, and what they were meant to be is touched by them.
    pub fn fields<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        known: &[&str],
        mut field: impl FnMut(&mut Self, &str, &str, &'n Node),
    ) {
        let map = self.map(path, node);
        for (key, value) in map {
            let inner = join(path, &key.name);
            if known.contains(&key.name.as_str()) {
                field(self, &key.name, &inner, value);
            } else if self.is_full() {
                self.count_more(1, key.at);
            } else {
                let meant = nearest(&key.name, known.iter().copied());
                let absent = meant.filter(|meant| map.iter().all(|(key, _)| key.name != *meant));
                self.meant.extend(absent.map(|meant| join(path, meant)));
                let message = format!("unknown field{}", did_you_mean(meant));
                self.push(Violation::new(inner, message).at(key.at));
            }
        }
    }
}

/// `spec` and `tty` make `spec.tty`. Bounded: a long key is not copied for each one below it.
pub fn join(path: &str, key: &str) -> String {
    let key = &key[..key.floor_char_boundary(2 * PATH_BYTES_MAX)];
    let joined = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    bounded(joined, PATH_BYTES_MAX)
}

/// Whether `inner` is `outer` or lies in it.
fn leads_to(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(list: &[Violation]) -> usize {
        list.iter().map(|fault| fault.path.len() + fault.message.len()).sum()
    }

    #[test]
    fn the_first_faults_are_kept_and_the_others_counted() {
        let node = Node { value: Value::Null, at: Some(Position { line: 7, column: 1 }) };
        let mut faults = Faults::default();
        for n in 0..FAULT_COUNT_MAX + 950 {
            faults.add(&format!("x[{n}]"), &node, "is wrong");
        }
        let list = faults.into_list();
        assert_eq!(list.len(), FAULT_COUNT_MAX + 1);
        assert_eq!(list[FAULT_COUNT_MAX].to_string(), "7:1: and 950 more");
    }

    #[test]
    fn faults_are_bounded_in_bytes_however_much_they_quote() {
        let long = "\u{1b}é".repeat(100_000);
        let node = Node { value: Value::Text(long.clone()), at: None };
        let mut faults = Faults::default();
        for _ in 0..100 {
            let path = join(&join("", &long), &long);
            assert!(path.len() <= PATH_BYTES_MAX);
            assert_eq!(faults.choice(&path, &node, &[("a", ()), ("b", ())]), None);
        }
        let list = faults.into_list();
        assert!((10..FAULT_COUNT_MAX).contains(&list.len()), "{}", list.len());
        assert!(bytes(&list) <= FAULT_BYTES_MAX + 64, "{}", bytes(&list));
        assert!(list.iter().all(|fault| !fault.to_string().contains('\u{1b}')));
    }

    #[test]
    fn faults_of_parts_are_one_list() {
        let node = Node { value: Value::Null, at: None };
        let mut all = Faults::default();
        for part in 0..3 {
            let mut faults = Faults::default();
            for _ in 0..FAULT_COUNT_MAX - 10 {
                faults.add("x", &node, "is wrong");
            }
            all.extend(faults.at(Some(Position { line: part + 1, column: 1 })));
        }
        let list = all.into_list();
        assert_eq!(list.len(), FAULT_COUNT_MAX + 1);
        assert_eq!(list[FAULT_COUNT_MAX].to_string(), "2:1: and 70 more");
    }

    #[test]
    fn a_fault_touches_what_it_is_in_and_what_is_in_it() {
        let faults_at = |path: &str| {
            let mut faults = Faults::default();
            faults.push(Violation::new(path, "is wrong"));
            faults
        };
        let faults = faults_at("spec.limits.memory_mb");
        let paths =
            ["spec", "spec.limits", "spec.limits.memory_mb", "spec.limits.memory", "spec.tty"];
        assert_eq!(paths.map(|path| faults.touch(path)), [true, true, true, false, false]);
        assert!(faults_at("spec.command[1]").touch("spec.command"));
        assert!(faults_at("spec.env").touch("spec.env.PORT"));
        assert!(faults_at("").touch("spec.tty"), "the document itself");
        assert!(!Faults::default().touch("spec"));
    }

    #[test]
    fn an_unknown_field_touches_the_one_that_is_not_there_and_was_meant() {
        let touches = |json: serde_json::Value| {
            let mut faults = Faults::default();
            faults.fields("spec", &json.into(), &["image", "tty"], |_, _, _, _| ());
            ["spec.image", "spec.tty"].map(|path| faults.touch(path))
        };
        assert_eq!(touches(serde_json::json!({"imgae": 1})), [true, false]);
        assert_eq!(touches(serde_json::json!({"imgae": 1, "image": 1})), [false, false]);
        assert_eq!(touches(serde_json::json!({"color": 1})), [false, false]);
    }

    #[test]
    fn faults_found_later_are_put_where_they_stand() {
        let json =
            serde_json::json!({"a": {"b": 1, "list": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}, "c": 1});
        let node = Node::from(json);
        let mut faults = Faults::default();
        for path in ["a.list[2]", "a.list[10]", "c"] {
            faults.push(Violation::new(path, "is wrong"));
        }
        let later = ["d", "a.list[3]", "a.b", "a"].map(|path| Violation::new(path, "is wrong"));
        let list = faults.and_later(later, &node).into_list();
        let paths: Vec<&str> = list.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["d", "a", "a.b", "a.list[2]", "a.list[3]", "a.list[10]", "c"]);
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let count = |value: f64| {
            let mut faults = Faults::default();
            let node = Node { value: Value::Float(value), at: None };
            faults.count("x", &node, 100).ok_or_else(|| faults.into_list()[0].message.clone())
        };
        assert_eq!(count(5.0), Ok(5));
        assert_eq!(count(101.0).unwrap_err(), "101 is out of range: 0 to 100");
        assert_eq!(count(5.5).unwrap_err(), "expected a whole number, found 5.5");
        assert!(count(1e300).is_err() && count(f64::NAN).is_err());
    }

    #[test]
    fn a_long_word_is_compared_with_nothing() {
        let long = "memory_mb".repeat(400_000);
        assert_eq!(suggestion(&long, ["memory_mb", "tty"]), "");
    }
}
