//! The directory of specs, as people treat it: written, renamed, half finished, and sometimes not mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::desired::scan::{Scan, Text};
use crate::simulation::dice::Dice;
use crate::simulation::scene::{COMMANDS, NAMES, POLICIES, timeout_seconds};

const PATHS: [&str; 3] = ["x.yaml", "y.yaml", "z.yaml"];
/// The directory, and what is in its place while it is not mounted.
const ROOT: (u64, u64) = (1, 2);
const MOUNT_POINT: (u64, u64) = (9, 9);

/// What is in it, whether or not it can be seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    files: BTreeMap<String, File>,
    pub(super) away: bool,
    /// Files whose present text no look has taken.
    pub(super) unread: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct File {
    text: String,
    /// What it declares; `None`: nobody can tell.
    names: Option<BTreeSet<&'static str>>,
}

impl Directory {
    /// Somebody does something in it. Returns what.
    pub(super) fn change(&mut self, dice: &mut Dice) -> String {
        let path = dice.pick(&PATHS);
        match dice.roll(8) {
            0..=3 => {
                let names: BTreeSet<&str> = (0..=dice.roll(2)).map(|_| dice.pick(&NAMES)).collect();
                let command = dice.pick(&COMMANDS);
                let policy = dice.pick(&POLICIES);
                let memory = 32 + dice.roll(2);
                self.write(path, &names, &body(command, policy, memory));
                format!("write {path}: {names:?} {command:?} {policy}")
            }
            4 => {
                let text = "kind: Sandbox\nmetadata: {name".to_owned();
                self.files.insert(path.to_owned(), File { text, names: None });
                self.unread.insert(path.to_owned());
                format!("half write {path}")
            }
            5 => {
                self.files.remove(path);
                format!("remove {path}")
            }
            6 => {
                let to = dice.pick(&PATHS);
                self.rename(path, to);
                format!("rename {path} to {to}")
            }
            _ => {
                self.away = !self.away;
                format!("mounted: {}", !self.away)
            }
        }
    }

    pub(super) fn write(&mut self, path: &str, names: &BTreeSet<&'static str>, body: &str) {
        let head = "apiVersion: sodium.dev/v1\nkind: Sandbox";
        let document = |name: &&str| format!("{head}\nmetadata: {{name: {name}}}\nspec:\n{body}");
        let documents: Vec<String> = names.iter().map(document).collect();
        let file = File { text: documents.join("---\n"), names: Some(names.clone()) };
        self.files.insert(path.to_owned(), file);
        self.unread.insert(path.to_owned());
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.files.remove(path);
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(file) = self.files.remove(from) {
            self.files.insert(to.to_owned(), file);
            self.unread.insert(to.to_owned());
        }
    }

    /// All faults mended, and everything asked to run on, in words that nobody has read before.
    pub(super) fn heal(&mut self) {
        self.away = false;
        for (path, file) in self.files.clone() {
            let names = file.names.unwrap_or_else(|| [NAMES[2]].into());
            let body = body(&["sleep", "1"], "always", 32) + "# for good\n";
            self.write(&path, &names, &body);
        }
    }

    /// Whether a name may be gone from a file, as far as people know.
    pub(super) fn declares(&self, path: &str, name: &str) -> bool {
        let file = self.files.get(path);
        file.is_some_and(|file| file.names.as_ref().is_none_or(|names| names.contains(name)))
    }

    /// Who declares what, as far as that can be told.
    pub(super) fn documents(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.files.iter().flat_map(|(path, file)| {
            let names = file.names.iter().flatten();
            names.map(move |name| (path.as_str(), *name))
        })
    }

    /// What a look finds.
    pub(super) fn scan(&self) -> Scan {
        if self.away {
            return Scan { root: MOUNT_POINT, ..Scan::default() };
        }
        let text = |file: &File| {
            let mut hasher = DefaultHasher::new();
            file.text.hash(&mut hasher);
            let digest = format!("{:016x}", hasher.finish());
            Text::Bytes { bytes: file.text.clone().into_bytes(), digest, fresh: false }
        };
        Scan {
            root: ROOT,
            present: self.files.keys().cloned().collect(),
            read: self.files.iter().map(|(path, file)| (path.clone(), text(file))).collect(),
            ..Scan::default()
        }
    }
}

/// The spec of a file.
pub(super) fn body(command: &[&str], policy: &str, memory: u64) -> String {
    let timeout = timeout_seconds(command);
    format!(
        "  command: {command:?}\n  restart: {{policy: {policy}}}\n  limits: {{memory_mb: {memory}, timeout_seconds: {timeout}}}\n"
    )
}
