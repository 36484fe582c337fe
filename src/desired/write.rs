//! Writing specs into the directory, for an API that keeps its sandboxes there.
//!
//! Others write there too, and may be hostile: see [`Beneath`] for what that means to the file system. Of a
//! file that holds several documents only one is edited; what somebody else has changed in it meanwhile is
//! read again, not overwritten.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::desired::edit::{self, Removed};
use crate::desired::parse::parse;
use crate::desired::scan::{FILE_BYTES_MAX, is_spec};
use crate::desired::yaml;
use sodium_model::admission::{Admitted, Rules};
use sodium_model::{SandboxName, Spec, Violation};
use sodium_sys::SysError;
use sodium_sys::beneath::{Beneath, Kind, Links, Meta, ReadError};

/// What the daemon writes may hold secrets of the sandbox, in its environment.
const MODE: u32 = 0o600;
/// A file that others change more often than this while it is edited is left to them.
const EDITED_AGAIN_MAX: usize = 8;

/// Why a file was not edited. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0:?} is no name of a file of specs")]
    Name(String),
    #[error("{file} cannot be edited: {}", list(faults))]
    Faults { file: String, faults: Vec<Violation> },
    #[error("{file} would be {bytes} bytes, the limit is {FILE_BYTES_MAX}")]
    TooLarge { file: String, bytes: usize },
    #[error("{0} is changed by somebody else all the time; try again")]
    Contended(String),
    #[error(transparent)]
    Sys(#[from] SysError),
}

fn list(faults: &[Violation]) -> String {
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// The file that the API keeps a new sandbox in.
pub fn file_name(name: &SandboxName) -> String {
    format!("{name}.yaml")
}

/// The only one who writes on behalf of the API.
#[derive(Debug)]
pub struct Writer {
    root: PathBuf,
    /// An edit reads, then writes: one at a time.
    turn: Mutex<()>,
}

impl Writer {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), turn: Mutex::new(()) }
    }

    /// Makes `document`, which declares `name`, one of the file's, durably. A text that would then not be
    /// taken by these rules is not written. Who wrote the text that is there goes on owning it only if that says
    /// already what is in force: whoever has put another one in its place is told nothing.
    pub fn put(
        &self,
        file: &str,
        (name, in_force): (&SandboxName, Option<&Spec>),
        document: &Value,
        rules: &Rules,
    ) -> Result<(), WriteError> {
        let document = written(file, document);
        self.edit(file, |found| {
            let knows = |one: &Admitted| one.name == *name && Some(&one.spec) == in_force;
            let parsed = found.and_then(|found| parse(found.as_bytes(), rules).ok());
            let known = parsed.is_some_and(|parsed| parsed.iter().any(knows));
            let put = edit::put(found.unwrap_or_default(), name, &document);
            let put = put.map_err(|fault| refused(file, vec![fault]))?;
            if put.text.len() as u64 > FILE_BYTES_MAX {
                return Err(WriteError::TooLarge { file: file.to_owned(), bytes: put.text.len() });
            }
            parse(put.text.as_bytes(), rules).map_err(|faults| refused(file, faults))?;
            Ok(Edit::Write { text: put.text, theirs: put.replaced && known })
        })
    }

    /// Takes the document of `name` out of the file, and the file away if it was the last, durably.
    pub fn remove(&self, file: &str, name: &SandboxName) -> Result<(), WriteError> {
        self.edit(file, |found| {
            let Some(found) = found else { return Ok(Edit::Remove) };
            let left = edit::remove(found, name).map_err(|fault| refused(file, vec![fault]))?;
            Ok(match left {
                Removed::Absent => Edit::Keep,
                Removed::Nothing => Edit::Remove,
                Removed::Text(text) => Edit::Write { text, theirs: true },
            })
        })
    }

    /// Does what `decide` makes of the text that is there now.
    fn edit(
        &self,
        file: &str,
        decide: impl Fn(Option<&str>) -> Result<Edit, WriteError>,
    ) -> Result<(), WriteError> {
        if !is_spec(file) || file.contains('/') {
            return Err(WriteError::Name(file.to_owned()));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = Beneath::open(&self.root)?;
        let name = OsStr::new(file);
        for _ in 0..EDITED_AGAIN_MAX {
            let before = dir.lstat(name)?;
            let text = text_of(&dir, file)?;
            let done = match decide(text.as_deref())? {
                Edit::Keep => return Ok(()),
                Edit::Remove => {
                    unchanged(&dir, name, before)? && dir.remove(name).map(|()| true)?
                }
                Edit::Write { text, theirs } => {
                    let owner = before.filter(|meta| theirs && meta.kind == Kind::File);
                    replace(&dir, name, &text, (before, owner))?
                }
            };
            if done {
                return Ok(dir.sync()?);
            }
        }
        Err(WriteError::Contended(file.to_owned()))
    }
}

/// What is to become of a file.
enum Edit {
    Keep,
    Remove,
    Write {
        text: String,
        /// Whether what is edited is somebody's who was there before, and may go on reading it.
        theirs: bool,
    },
}

/// Whether the name still stands for what it did.
fn unchanged(dir: &Beneath, name: &OsStr, before: Option<Meta>) -> Result<bool, SysError> {
    Ok(dir.lstat(name)? == before)
}

/// Puts a text there, whole or not at all, unless somebody was faster.
fn replace(
    dir: &Beneath,
    name: &OsStr,
    text: &str,
    (before, owner): (Option<Meta>, Option<Meta>),
) -> Result<bool, SysError> {
    let mut file = dir.begin(MODE)?;
    if let Some(owner) = owner {
        // Without root it is ours from now on.
        let _ = file.give(owner.uid, owner.gid);
    }
    file.write_all(text.as_bytes())?;
    file.sync()?;
    if !unchanged(dir, name, before)? {
        return Ok(false);
    }
    file.replace(name).map(|()| true)
}

/// What the file says now. What no scan would read, a link out of the directory or a FIFO, says nothing.
fn text_of(dir: &Beneath, file: &str) -> Result<Option<String>, WriteError> {
    let fault = |message: String| refused(file, vec![Violation::new("", message)]);
    match dir.read(OsStr::new(file), Links::Within, FILE_BYTES_MAX) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(fault("is not UTF-8".to_owned())),
        },
        Err(error) if error.is_absence() => Ok(None),
        Err(ReadError::Outside | ReadError::Link | ReadError::NotAFile) => Ok(None),
        Err(error @ ReadError::TooLarge { .. }) => Err(fault(error.to_string())),
        Err(ReadError::Sys(error)) => Err(error.into()),
    }
}

fn refused(file: &str, faults: Vec<Violation>) -> WriteError {
    WriteError::Faults { file: file.to_owned(), faults }
}

/// The document in the language of the file, with a line break at its end.
fn written(file: &str, document: &Value) -> String {
    // JSON is YAML too; the other way around people would wonder.
    let text =
        if file.ends_with(".json") { format!("{document:#}") } else { yaml::write(document) };
    format!("{}\n", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use serde_json::json;

    use super::*;
    use sodium_model::{Allowed, Isolation, Limits, RestartPolicy};

    struct Desk {
        dir: tempfile::TempDir,
        writer: Writer,
        rules: Rules,
    }

    impl Desk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("desired")).unwrap();
            fs::write(dir.path().join("outside"), "kept").unwrap();
            let rules = Rules {
                default_isolation: Isolation::Process,
                allowed: Allowed { floor: Isolation::Process, ..Allowed::default() },
                default_limits: Limits::DEFAULT,
                images: Default::default(),
                default_policy: RestartPolicy::OnFailure,
            };
            let writer = Writer::new(&dir.path().join("desired"));
            Self { dir, writer, rules }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join("desired").join(name)
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.at(name)).unwrap()
        }

        fn put(&self, file: &str, name: &str, command: &str) -> Result<(), WriteError> {
            let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
                "metadata": {"name": name}, "spec": {"command": [command]}});
            let name = SandboxName::try_from(name).unwrap();
            let found = fs::read(self.at(file)).unwrap_or_default();
            let parsed = parse(&found, &self.rules).unwrap_or_default();
            let in_force = parsed.into_iter().find(|one| one.name == name).map(|one| one.spec);
            self.writer.put(file, (&name, in_force.as_ref()), &document, &self.rules)
        }

        fn remove(&self, file: &str, name: &str) -> Result<(), WriteError> {
            self.writer.remove(file, &SandboxName::try_from(name).unwrap())
        }

        /// Names of everything in the directory.
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.at("")).unwrap();
            let mut names: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort_unstable();
            names
        }
    }

    #[test]
    fn links_that_lie_in_the_way_are_replaced_and_lead_nowhere() {
        let desk = Desk::new();
        symlink("../outside", desk.at(".web.yaml.new")).unwrap();
        symlink("../outside", desk.at("web.yaml")).unwrap();
        desk.put("web.yaml", "web", "one").unwrap();
        let meta = fs::symlink_metadata(desk.at("web.yaml")).unwrap();
        assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
        assert!(desk.text("web.yaml").contains("one"));
        assert_eq!(desk.names(), [".web.yaml.new", "web.yaml"]);
        fs::remove_file(desk.at("web.yaml")).unwrap();
        symlink("../outside", desk.at("web.yaml")).unwrap();
        desk.remove("web.yaml", "web").unwrap();
        assert_eq!(desk.names(), [".web.yaml.new"]);
        for odd in ["../outside", "../outside.yaml", "a/b.yaml", ".yaml", "", "web.txt"] {
            assert!(desk.put(odd, "web", "one").is_err(), "{odd:?}");
            assert!(desk.remove(odd, "web").is_err(), "{odd:?}");
        }
        assert_eq!(fs::read(desk.dir.path().join("outside")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(desk.dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_edit_leaves_the_other_documents_and_the_owner_of_the_file() {
        let desk = Desk::new();
        desk.put("web.yaml", "web", "one").unwrap();
        desk.put("web.yaml", "db", "two").unwrap();
        let both = format!("# head\n{}# tail\n", desk.text("web.yaml"));
        fs::write(desk.at("web.yaml"), &both).unwrap();
        let is_root = sodium_sys::is_root();
        if is_root {
            std::os::unix::fs::chown(desk.at("web.yaml"), Some(1234), Some(1234)).unwrap();
        }
        desk.put("web.yaml", "web", "three").unwrap();
        assert_eq!(desk.text("web.yaml"), both.replace("one", "three"));
        let meta = fs::metadata(desk.at("web.yaml")).unwrap();
        assert!(meta.permissions().mode() & 0o777 == 0o600 && (!is_root || meta.uid() == 1234));
        desk.remove("web.yaml", "web").unwrap();
        let text = desk.text("web.yaml");
        assert!(text.starts_with("# head\n---\n") && text.ends_with("# tail\n"), "{text}");
        assert!(text.contains("db") && !text.contains("web"), "{text}");
        desk.remove("web.yaml", "web").unwrap();
        desk.remove("web.yaml", "db").unwrap();
        assert_eq!(desk.names(), [""; 0]);
        desk.remove("web.yaml", "db").unwrap();
    }

    #[test]
    fn who_has_put_another_text_in_its_place_is_given_nothing() {
        if !sodium_sys::is_root() {
            return;
        }
        let desk = Desk::new();
        desk.put("web.yaml", "web", "secret").unwrap();
        let in_force = parse(desk.text("web.yaml").as_bytes(), &desk.rules).unwrap().remove(0).spec;
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": "web"}, "spec": {"command": ["secret", "2"]}});
        let head = "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {name: web}\n";
        for planted in ["spec: {command: [sh], tty: true}\n", "spec: {bogus: 1}\n"] {
            fs::write(desk.at("web.yaml"), format!("{head}{planted}")).unwrap();
            std::os::unix::fs::chown(desk.at("web.yaml"), Some(1234), Some(1234)).unwrap();
            let name = SandboxName::try_from("web").unwrap();
            desk.writer.put("web.yaml", (&name, Some(&in_force)), &document, &desk.rules).unwrap();
            let meta = fs::metadata(desk.at("web.yaml")).unwrap();
            assert_eq!((meta.uid(), meta.permissions().mode() & 0o777), (0, 0o600), "{planted}");
        }
    }

    #[test]
    fn a_file_that_would_not_be_taken_is_not_written() {
        let desk = Desk::new();
        let bad = "metadata: {name: db}\nkind: Sand\n";
        fs::write(desk.at("web.yaml"), bad).unwrap();
        let said = desk.put("web.yaml", "web", "one").unwrap_err().to_string();
        assert!(said.starts_with("web.yaml cannot be edited: "), "{said}");
        assert_eq!(desk.text("web.yaml"), bad);
        fs::write(desk.at("web.yaml"), b"caf\xe9: 1").unwrap();
        assert!(desk.put("web.yaml", "web", "one").is_err());
        let large = "x".repeat(1 << 20);
        assert!(desk.put("large.yaml", "large", &large).is_err());
        assert_eq!(desk.names(), ["web.yaml"]);
    }

    #[test]
    fn edits_at_once_all_arrive() {
        let desk = Desk::new();
        let names: Vec<String> = (0..16).map(|n| format!("s{n}")).collect();
        std::thread::scope(|scope| {
            let desk = &desk;
            for name in &names {
                scope.spawn(move || desk.put("all.yaml", name, "one").unwrap());
            }
        });
        for name in &names {
            desk.remove("all.yaml", name).unwrap();
        }
        assert_eq!(desk.names(), [""; 0]);
    }

    #[test]
    fn json_stays_json() {
        let desk = Desk::new();
        desk.put("web.json", "web", "one").unwrap();
        desk.put("web.json", "web", "two").unwrap();
        let document: Value = serde_json::from_str(&desk.text("web.json")).unwrap();
        assert_eq!(document["spec"]["command"], json!(["two"]));
    }
}
