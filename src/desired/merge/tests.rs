//! The rules of the directory, played through against a real store.

use super::*;
use crate::desired::scan::Scanner;
use crate::store::edit::{self, Precondition, Put};
use crate::store::{Store, database_path, files};
use sodium_model::{Isolation, Limits, RestartPolicy};

/// A directory, a store, and a clock that only this test moves.
struct Desk {
    dir: tempfile::TempDir,
    store: Store,
    rules: Rules,
    now: Time,
    _state: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let rules = Rules {
            default_isolation: Isolation::Process,
            default_limits: Limits::DEFAULT,
            allowed: Default::default(),
            images: BTreeMap::new(),
            default_policy: RestartPolicy::OnFailure,
        };
        let store = Store::open(&database_path(state.path())).unwrap();
        // Far in the future, so that files written now have settled.
        Self {
            dir: tempfile::tempdir().unwrap(),
            store,
            rules,
            now: Time(10_u64.pow(14)),
            _state: state,
        }
    }

    fn write(&self, path: &str, names: &[&str]) {
        let documents: Vec<String> = names
            .iter()
            .map(|name| format!("apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {{name: {name}}}\nspec: {{command: [a]}}\n"))
            .collect();
        std::fs::write(self.dir.path().join(path), documents.join("---\n")).unwrap();
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    /// A scan that reads everything, and its consequences.
    fn look(&mut self) -> FileChanges {
        self.now = self.now.after(Span::seconds(15));
        let scan = Scanner::new(self.dir.path()).scan(self.now.0, true).unwrap();
        self.take(&scan, true).changes
    }

    /// A scan that was told of these files alone. Returns whether another look is asked for.
    fn glance(&mut self, paths: &[&str]) -> bool {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let scan = Scanner::new(self.dir.path()).scan_some(&paths, self.now.0).unwrap();
        self.take(&scan, false).look_again
    }

    fn take(&self, scan: &Scan, complete: bool) -> Merged {
        let snapshot = self.store.snapshot();
        let (rules, now) = (&self.rules, self.now);
        let merged = merge(&Merge { scan, complete, snapshot: &snapshot, rules, now });
        let changes = merged.changes.clone();
        self.store.write_blocking(move |core| files::apply(core, changes, now)).unwrap();
        merged
    }

    /// Over the API.
    fn declare(&self, name: &str) {
        let text = format!(
            "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {{name: {name}}}\nspec: {{command: [b]}}"
        );
        let declared = parse(text.as_bytes(), &self.rules).unwrap().remove(0);
        let put = Put {
            name: declared.name,
            labels: declared.labels,
            spec: declared.spec,
            owner: Owner::Api,
            uid: None,
            precondition: Precondition::None,
        };
        self.store.write_blocking(move |core| edit::put(core, put, Time(0))).unwrap().unwrap();
    }

    fn power(&self, name: &'static str, verb: edit::Verb) {
        let done = self.store.write_blocking(move |core| edit::power(core, name, verb, Time(1)));
        done.unwrap().unwrap();
    }

    fn transfer(&self, name: &'static str, owner: Owner) {
        let given = move |core: &mut _| edit::transfer(core, name, owner, Time(0));
        self.store.write_blocking(given).unwrap().unwrap();
    }

    /// `name=owner` of all that are not going, and `name!` of those that are.
    fn names(&self) -> String {
        let snapshot = self.store.snapshot();
        let texts: Vec<String> = snapshot
            .sandboxes
            .values()
            .map(|sandbox| match sandbox.deletion {
                Some(_) => format!("{}!", sandbox.name),
                None => format!("{}={}", sandbox.name, sandbox.owner),
            })
            .collect();
        texts.join(" ")
    }
}

#[test]
fn files_declare_and_a_second_look_changes_nothing() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "b"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:a.yaml");
    assert_eq!(desk.look(), FileChanges::default());
}

#[test]
fn a_bad_text_changes_nothing_and_is_told_once() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    std::fs::write(desk.dir.path().join("a.yaml"), "spec: [").unwrap();
    assert_eq!(desk.look().warnings.len(), 1);
    assert_eq!(desk.look(), FileChanges::default());
    assert_eq!(desk.names(), "a=file:a.yaml");
    assert!(!desk.store.snapshot().files["a.yaml"].faults.is_empty());
    desk.write("a.yaml", &["a"]);
    desk.look();
    assert!(desk.store.snapshot().files["a.yaml"].faults.is_empty());
}

#[test]
fn a_multi_document_file_is_all_or_nothing() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "B"]);
    desk.look();
    assert_eq!(desk.names(), "");
}

#[test]
fn a_removal_is_believed_the_second_time() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.write("b.yaml", &["b"]);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:b.yaml");
    desk.look();
    assert_eq!(desk.names(), "a! b=file:b.yaml");
    assert!(desk.store.snapshot().files.get("a.yaml").is_none());
}

#[test]
fn a_file_that_comes_back_in_time_has_never_been_gone() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
    assert!(desk.store.snapshot().files["a.yaml"].missing.is_empty());
}

#[test]
fn a_document_taken_out_of_its_file_goes_like_a_file() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "b"]);
    desk.look();
    desk.write("a.yaml", &["b"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:a.yaml");
    desk.look();
    assert_eq!(desk.names(), "a! b=file:a.yaml");
    assert_eq!(desk.store.snapshot().files["a.yaml"].names.len(), 1);
}

#[test]
fn an_emptied_directory_removes_nothing_until_it_is_confirmed() {
    let mut desk = Desk::new();
    for name in ["a", "b", "c", "d"] {
        desk.write(&format!("{name}.yaml"), &[name]);
    }
    desk.look();
    for name in ["a", "b", "c", "d"] {
        desk.remove(&format!("{name}.yaml"));
    }
    desk.look();
    assert_eq!(desk.look().warnings.len(), 4);
    assert_eq!(desk.look(), FileChanges::default());
    assert!(!desk.names().contains('!'));
    assert!(desk.store.snapshot().files["a.yaml"].held.is_some());
    let names = desk.store.write_blocking(files::confirm).unwrap();
    assert_eq!(names.len(), 4);
    desk.look();
    assert_eq!(desk.names(), "a! b! c! d!");
}

#[test]
fn another_directory_in_its_place_removes_nothing() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.write("b.yaml", &["b"]);
    desk.look();
    desk.dir = tempfile::tempdir().unwrap();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:b.yaml");
    // Once everything is there again, the new directory is believed.
    desk.write("b.yaml", &["b"]);
    desk.look();
    desk.remove("b.yaml");
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b!");
}

#[test]
fn a_directory_that_was_only_glanced_at_is_not_the_empty_one_before_it() {
    let mut desk = Desk::new();
    desk.look();
    let mount_point = std::mem::replace(&mut desk.dir, tempfile::tempdir().unwrap());
    desk.write("a.yaml", &["a"]);
    assert!(desk.glance(&["a.yaml"]), "it is to be seen whole first");
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
    assert!(!desk.glance(&["a.yaml"]));
    desk.dir = mount_point;
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
}

#[test]
fn a_renamed_file_keeps_its_sandboxes() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    let uid = desk.store.snapshot().sandboxes["a"].uid;
    desk.remove("a.yaml");
    desk.write("z.yaml", &["a"]);
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:z.yaml");
    let snapshot = desk.store.snapshot();
    let after = &snapshot.sandboxes["a"];
    assert_eq!((after.uid, after.generation), (uid, 1));
}

#[test]
fn a_document_that_was_missed_and_turns_up_in_another_file_stays() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "b"]);
    desk.look();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.write("z.yaml", &["b"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:z.yaml");
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:z.yaml");
}

#[test]
fn a_bad_text_that_was_away_for_a_while_changes_nothing() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    let path = desk.dir.path().join("a.yaml");
    std::fs::write(&path, "spec: [").unwrap();
    desk.look();
    std::fs::remove_file(&path).unwrap();
    desk.look();
    std::fs::write(&path, "spec: [").unwrap();
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
    assert!(desk.store.snapshot().files["a.yaml"].missing.is_empty());
}

#[test]
fn a_file_that_comes_back_with_a_fault_keeps_its_sandbox_though_another_declares_it() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    std::fs::write(desk.dir.path().join("a.yaml"), "spec: [").unwrap();
    desk.write("b.yaml", &["a"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
}

#[test]
fn a_clock_that_is_set_back_puts_no_removal_off() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    desk.now = Time(desk.now.0 - 1_000_000_000);
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a!");
}

#[test]
fn one_name_has_one_owner() {
    let mut desk = Desk::new();
    desk.declare("api");
    desk.write("a.yaml", &["api", "a"]);
    desk.write("b.yaml", &["a"]);
    let conflicts = desk.look().warnings.len();
    // Two files for one new name: neither is used, since nothing says which was meant.
    assert_eq!((desk.names().as_str(), conflicts), ("api=api", 3));
    desk.remove("b.yaml");
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml api=api");
    // An incumbent keeps its name against a newcomer.
    desk.write("b.yaml", &["a"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml api=api");
    let record = &desk.store.snapshot().files["b.yaml"];
    assert_eq!(record.conflicts["a"], "it is owned by file:a.yaml");
}

#[test]
fn of_text_that_stands_for_much_the_rest_has_its_turn_and_nothing_goes_for_it() {
    let mut desk = Desk::new();
    desk.write("z.yaml", &["z"]);
    desk.look();
    // It is missing by now, and is declared again in the moment in which it would go.
    desk.write("z.yaml", &["y"]);
    desk.look();
    desk.write("z.yaml", &["y", "z"]);
    // 17 KiB of text that are 0.9 MiB of specs: nine links, and each of 100 files is one.
    let value = "x".repeat(15_000);
    let aliases: Vec<String> = (0..60).map(|n| format!("f{n}: *a")).collect();
    for n in 0..100 {
        let text = format!(
            "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {{name: s{n:02}}}\nspec: {{command: [a], \
             env: {{A: &a {value}}}, files: {{{}}}}}\n",
            aliases.join(", ")
        );
        std::fs::write(desk.dir.path().join(format!("s{n:02}.yaml")), text).unwrap();
    }
    let (mut scanner, mut taken) = (Scanner::new(desk.dir.path()), Vec::new());
    for _ in 0..3 {
        desk.now = desk.now.after(Span::seconds(15));
        let scan = scanner.scan(desk.now.0, true).unwrap();
        let merged = desk.take(&scan, true);
        merged.again.iter().for_each(|path| scanner.forget(path));
        let next = merged.left.first().cloned();
        taken.push((merged.changes.declared.len(), merged.left.len(), merged.look_again));
        scanner.begin_at(next.unwrap_or_default());
    }
    assert!((60..80).contains(&taken[0].0) && taken[0].1 == 101 - taken[0].0, "{taken:?}");
    assert_eq!((taken[0].2, taken[1].1, taken[2].1), (true, 0, 0), "{taken:?}");
    let names = desk.names();
    assert!(names.ends_with("s99=file:s99.yaml y=file:z.yaml z=file:z.yaml"), "{names}");
}

#[test]
fn what_the_api_has_declared_lets_no_more_files_go_at_once() {
    let mut desk = Desk::new();
    for n in 0..40 {
        let name = format!("api{n}");
        desk.declare(&name);
    }
    let names = ["a", "b", "c", "d", "e"];
    desk.write("a.yaml", &names);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    let told = desk.look().warnings;
    assert!(told[0].2.contains("5 of 5 sandboxes from files"), "{told:?}");
    assert!(names.iter().all(|name| desk.store.snapshot().sandboxes[*name].deletion.is_none()));
}

#[test]
fn a_file_that_comes_back_while_its_sandbox_goes_has_it_again_afterwards() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.remove("a.yaml");
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a!");
    desk.write("a.yaml", &["a"]);
    desk.look();
    let record = desk.store.snapshot().files["a.yaml"].clone();
    assert!(record.conflicts["a"].contains("still being deleted"), "{record:?}");
    let name = SandboxName::try_from("a").unwrap();
    desk.store.write_blocking(move |core| core.remove(&name).map(drop)).unwrap();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml");
}

#[test]
fn a_glance_at_one_file_takes_no_name_of_one_that_it_has_not_looked_at() {
    let mut desk = Desk::new();
    desk.write("old.yaml", &["a"]);
    desk.look();
    desk.write("new.yaml", &["a"]);
    desk.glance(&["new.yaml"]);
    assert_eq!(desk.names(), "a=file:old.yaml");
    // Nor of one that is gone, as far as that can be seen.
    desk.remove("old.yaml");
    desk.glance(&["new.yaml"]);
    assert_eq!(desk.names(), "a=file:old.yaml");
    desk.look();
    assert_eq!(desk.names(), "a=file:new.yaml");
}

#[test]
fn so_much_is_told_of_a_look_and_no_more() {
    let mut desk = Desk::new();
    for n in 0..10 {
        let names: Vec<String> = (0..64).map(|k| format!("s{n}-{k}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        desk.write(&format!("a{n}.yaml"), &names);
        desk.write(&format!("b{n}.yaml"), &names);
    }
    let told = desk.look().warnings;
    assert_eq!(told.len(), 201);
    assert_eq!(told[200].2, "and 1080 more: `sodiumd get files` lists them");
    assert_eq!(desk.look().warnings, []);
}

#[test]
fn what_is_missing_after_somebody_confirmed_is_asked_about_again() {
    let mut desk = Desk::new();
    let all: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let going = |desk: &Desk| desk.names().matches('!').count();
    desk.write("a.yaml", &all);
    desk.look();
    desk.write("a.yaml", &all[5..]);
    desk.look();
    desk.look();
    assert_eq!(going(&desk), 0);
    assert_eq!(desk.store.write_blocking(files::confirm).unwrap().len(), 5);
    // Not what was not missing when he did.
    desk.write("a.yaml", &all[9..]);
    desk.look();
    let told = desk.look().warnings;
    assert_eq!((going(&desk), told.len()), (5, 1));
    assert_eq!((desk.look().warnings, going(&desk)), (vec![], 5));
    assert_eq!(desk.store.write_blocking(files::confirm).unwrap().len(), 4);
    desk.look();
    assert_eq!(going(&desk), 9);
    // And nothing is left of it for the last one.
    desk.write("a.yaml", &all[9..]);
    desk.look();
    assert!(desk.store.snapshot().files["a.yaml"].confirmed_names.is_empty());
}

#[test]
fn what_an_operator_has_stopped_goes_when_somebody_confirms_it() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "b"]);
    desk.look();
    desk.power("a", edit::Verb::Kill);
    desk.remove("a.yaml");
    desk.look();
    let told = desk.look().warnings;
    assert_eq!(desk.names(), "a=file:a.yaml b!");
    assert!(told[0].2.contains("a kept: an operator has stopped it"), "{told:?}");
    // Declared again, it is what it was.
    desk.write("a.yaml", &["a"]);
    desk.look();
    let a = desk.store.snapshot().sandboxes["a"].power.hold;
    assert_eq!(a, Some(Hold::Killed));
    desk.remove("a.yaml");
    desk.look();
    desk.look();
    desk.store.write_blocking(files::confirm).unwrap();
    desk.look();
    assert_eq!(desk.names(), "a! b!");
}

#[test]
fn what_waited_for_a_word_waits_on_though_it_was_started_again() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a"]);
    desk.look();
    desk.power("a", edit::Verb::Stop);
    desk.remove("a.yaml");
    desk.look();
    desk.look();
    desk.power("a", edit::Verb::Start);
    desk.write("other.yaml", &["b"]);
    desk.look();
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:other.yaml");
    desk.store.write_blocking(files::confirm).unwrap();
    desk.look();
    assert_eq!(desk.names(), "a! b=file:other.yaml");
}

#[test]
fn what_was_given_to_a_file_is_not_taken_by_another_before_that_is_read() {
    let mut desk = Desk::new();
    desk.write("own.yaml", &["a"]);
    desk.write("old.yaml", &["b"]);
    desk.look();
    desk.transfer("a", Owner::Api);
    desk.write("team.yaml", &["a"]);
    desk.write("evil.yaml", &["a"]);
    desk.remove("own.yaml");
    desk.look();
    assert_eq!(desk.names(), "a=api b=file:old.yaml");
    desk.transfer("a", Owner::File("team.yaml".to_owned()));
    desk.glance(&["evil.yaml"]);
    assert_eq!(desk.names(), "a=file:team.yaml b=file:old.yaml");
    desk.glance(&["team.yaml"]);
    assert!(desk.store.snapshot().files["team.yaml"].conflicts.is_empty());
    assert_eq!(desk.names(), "a=file:team.yaml b=file:old.yaml");
    // Nor from one that has it only since it was last read.
    desk.write("old.yaml", &["a", "b"]);
    desk.transfer("a", Owner::File("old.yaml".to_owned()));
    desk.glance(&["evil.yaml"]);
    assert_eq!(desk.names(), "a=file:old.yaml b=file:old.yaml");
    desk.glance(&["old.yaml"]);
    assert!(desk.store.snapshot().files["old.yaml"].given_names.is_empty());
    // One that does not declare it when it is read has given it up.
    desk.transfer("a", Owner::File("team.yaml".to_owned()));
    desk.write("team.yaml", &["c"]);
    desk.look();
    assert_eq!(desk.names(), "a=file:evil.yaml b=file:old.yaml c=file:team.yaml");
}

#[test]
fn what_became_somebody_elses_during_a_look_is_neither_moved_nor_removed_by_it() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &["a", "b"]);
    desk.look();
    desk.write("new.yaml", &["a"]);
    desk.remove("a.yaml");
    desk.look();
    desk.now = desk.now.after(Span::seconds(15));
    let scan = Scanner::new(desk.dir.path()).scan(desk.now.0, true).unwrap();
    let snapshot = desk.store.snapshot();
    let input = Merge {
        scan: &scan,
        complete: true,
        snapshot: &snapshot,
        rules: &desk.rules,
        now: desk.now,
    };
    let changes = merge(&input).changes;
    assert_eq!(changes.pruned.len(), 1, "{changes:?}");
    for name in ["a", "b"] {
        desk.transfer(name, Owner::File("third.yaml".to_owned()));
    }
    let moved = Moved { was: changes.pruned[0].clone(), to: "new.yaml".to_owned() };
    let changes = FileChanges { moved: vec![moved], ..changes };
    desk.store.write_blocking(move |core| files::apply(core, changes, Time(0))).unwrap();
    assert_eq!(desk.names(), "a=file:third.yaml b=file:third.yaml");
}

#[test]
fn a_look_that_is_over_judges_one_file_and_leaves_the_others_as_unknown() {
    let mut desk = Desk::new();
    for path in ["a.yaml", "b.yaml", "c.yaml"] {
        desk.write(path, &[&path[..1]]);
    }
    let scan = Scanner::new(desk.dir.path()).scan(desk.now.0, true).unwrap();
    let over = Scan { time: Some((Instant::now(), std::time::Duration::ZERO)), ..scan };
    let merged = desk.take(&over, true);
    assert_eq!((desk.names().as_str(), merged.left.len()), ("a=file:a.yaml", 2));
    assert!(merged.look_again && desk.store.snapshot().root.is_none());
    desk.look();
    assert_eq!(desk.names(), "a=file:a.yaml b=file:b.yaml c=file:c.yaml");
    // One with a fault is as dear.
    for path in ["a.yaml", "b.yaml"] {
        std::fs::write(desk.dir.path().join(path), "spec: [").unwrap();
    }
    let scan = Scanner::new(desk.dir.path()).scan(desk.now.0, true).unwrap();
    let over = Scan { time: Some((Instant::now(), std::time::Duration::ZERO)), ..scan };
    assert_eq!(desk.take(&over, true).left, ["b.yaml", "c.yaml"]);
}
