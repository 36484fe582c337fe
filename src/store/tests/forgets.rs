//! What the store does not forget, and what it does.

use super::*;
use sodium_model::Hold;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    (dir, store)
}

fn power(store: &Store, verb: Verb) {
    store.write_blocking(move |core| edit::power(core, "web", verb, Time(6))).unwrap().unwrap();
}

#[test]
fn a_kill_is_not_softened_by_a_later_stop() {
    let (_dir, store) = open();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    power(&store, Verb::Kill);
    power(&store, Verb::Stop);
    assert_eq!(store.snapshot().sandboxes["web"].power.hold, Some(Hold::Killed));
    power(&store, Verb::Start);
    power(&store, Verb::Stop);
    assert_eq!(store.snapshot().sandboxes["web"].power.hold, Some(Hold::Stopped));
}

/// An edit that mends a spec is not made to wait for what the one before it has done.
#[test]
fn a_new_generation_begins_without_the_failures_of_the_last() {
    let (_dir, store) = open();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let fail = |core: &mut Core| {
        let mut failing = sodium_model::Sandbox::clone(&core.get("web").unwrap());
        failing.history.failures = 7;
        core.put(failing).map(drop)
    };
    store.write_blocking(fail).unwrap();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let failures = || store.snapshot().sandboxes["web"].history.failures;
    assert_eq!(failures(), 7, "nothing was changed");
    put(&store, declare("web", "b", Owner::Api)).unwrap();
    assert_eq!(failures(), 0);
}

#[test]
fn a_watcher_that_is_one_change_too_far_behind_starts_over() {
    let (_dir, store) = open();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let sandbox = store.snapshot().sandboxes["web"].clone();
    let mut ring = change::Ring::new(10);
    for rv in 11..=10 + 1_024 + 3 {
        let sandbox = std::sync::Arc::clone(&sandbox);
        ring.extend(vec![change::Change { rv, kind: change::ChangeKind::Modified, sandbox }]);
    }
    // Three were forgotten, the last of which is 13.
    assert_eq!(ring.since(13).map(|all| (all.len(), all[0].rv)), Some((1_024, 14)));
    assert!(ring.since(12).is_none());
}

#[test]
fn the_uid_of_what_is_gone_finds_nobody() {
    let (_dir, store) = open();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let gone = store.snapshot().sandboxes["web"].uid;
    let forget = |core: &mut Core| core.remove(&SandboxName::try_from("web").unwrap()).map(drop);
    store.write_blocking(forget).unwrap();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let now = store.snapshot();
    assert!(now.find(&gone.to_string()).is_none(), "not even the next one of its name");
    assert_eq!(now.find("web").map(|one| one.uid == gone), Some(false));
}
