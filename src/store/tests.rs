//! The store's promises: durable before answered, alone in failure, and readable by the next daemon.

#[path = "../../tests/it/disk.rs"]
#[allow(unreachable_pub, reason = "it is the other tests' too")]
mod disk;
mod forgets;
mod golden;
mod power;
mod rescue;

use serde_json::json;

use super::edit::{Delete, Edited, Precondition, Put, Refusal, Verb};
use super::*;
use sodium_model::draft::read_spec;
use sodium_model::tree::Faults;
use sodium_model::{Hold, Owner, SandboxName, Spec, Time, Violation};

fn spec(command: &str) -> Spec {
    let rules = sodium_model::admission::Rules {
        default_isolation: sodium_model::Isolation::Process,
        default_limits: sodium_model::Limits::DEFAULT,
        allowed: Default::default(),
        images: Default::default(),
        default_policy: sodium_model::RestartPolicy::Never,
    };
    let draft = read_spec(&mut Faults::default(), "", &json!({"command": [command]}).into());
    sodium_model::admission::admit(&draft, &rules).unwrap()
}

fn declare(name: &str, command: &str, owner: Owner) -> Put {
    Put {
        name: SandboxName::try_from(name).unwrap(),
        labels: Default::default(),
        spec: spec(command),
        owner,
        uid: None,
        precondition: Precondition::None,
    }
}

fn put(store: &Store, what: Put) -> Result<Edited, Refusal> {
    store.write_blocking(|core| edit::put(core, what, Time(5))).unwrap()
}

#[test]
fn what_was_answered_is_there_for_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = Store::open(&path).unwrap();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    put(&store, declare("web", "b", Owner::Api)).unwrap();
    let power = store.write_blocking(|core| edit::power(core, "web", Verb::Stop, Time(6)));
    power.unwrap().unwrap();
    let before = store.snapshot();
    let next = Store::open(&path).unwrap();
    let after = next.snapshot();
    assert_eq!(before.sandboxes["web"], after.sandboxes["web"]);
    assert_eq!(after.sandboxes["web"].generation, 2);
    assert_eq!(after.sandboxes["web"].power.hold, Some(Hold::Stopped));
    assert_eq!((before.rv, before.epoch.clone()), (after.rv, after.epoch.clone()));
    assert_eq!(after.events.len(), 3);
    assert_eq!((store.epoch(), next.epoch()), (1, 2));
}

/// A console that was opened with a ticket for one sandbox had power over the next one of its name.
#[test]
fn power_over_a_sandbox_ends_with_it_though_its_name_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let now = store.snapshot().sandboxes["web"].uid;
    let stop = |uid| {
        let ask = move |core: &mut Core| edit::power_of(core, ("web", uid), Verb::Stop, Time(6));
        store.write_blocking(ask).unwrap()
    };
    assert!(matches!(stop(uuid::Uuid::now_v7()), Err(Refusal::NotFound)));
    stop(now).unwrap();
}

/// A Git writer who turned one large spec over and over had a thousand of them kept.
#[test]
fn changes_are_forgotten_by_their_size_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let mut large = declare("web", "a", Owner::Api);
    large.spec.env.insert("A".to_owned(), "x".repeat(1 << 20));
    put(&store, large).unwrap();
    let sandbox = store.snapshot().sandboxes["web"].clone();
    let mut ring = change::Ring::new(0);
    for rv in 1..=100 {
        let sandbox = std::sync::Arc::clone(&sandbox);
        ring.extend(vec![change::Change { rv, kind: change::ChangeKind::Modified, sandbox }]);
    }
    assert!(ring.bytes() <= change::CHANGES_BYTES_MAX);
    assert_eq!(ring.since(99).unwrap().len(), 1);
    assert!(ring.since(50).is_none(), "whoever is so far behind is to start over with a list");
}

#[test]
fn what_an_edit_leaves_behind_is_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = Store::open(&path).unwrap();
    put(&store, declare("web", "a", Owner::Api)).unwrap();
    let mut large = declare("web", "a", Owner::Api);
    for n in 0..1_000 {
        large.spec.env.insert(format!("{n}\u{1b}{}", "N".repeat(1_000)), "x".to_owned());
    }
    put(&store, large).unwrap();
    let sandbox = store.snapshot().sandboxes["web"].clone();
    let edit = sandbox.history.edits.last().unwrap();
    assert_eq!((edit.fields.len(), edit.more), (32, 968));
    assert!(edit.fields.iter().all(|field| field.len() <= 128 && !field.contains('\u{1b}')));
    // A release that knew no bound has left such a message.
    let connection = rusqlite::Connection::open(&path).unwrap();
    let long = "y".repeat(1 << 20);
    connection.execute("UPDATE events SET message = ?1 WHERE reason = 'Created'", [&long]).unwrap();
    drop(connection);
    let next = Store::open(&path).unwrap();
    for event in store.snapshot().events.iter().chain(&next.snapshot().events) {
        assert!(event.message.len() <= 1024, "{} bytes: {}", event.message.len(), event.reason);
        assert!(!event.message.contains('\u{1b}'), "{}", event.message);
    }
    assert_eq!(next.snapshot().sandboxes["web"], sandbox);
}

#[test]
fn a_name_has_one_owner_and_an_edit_its_preconditions() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let file = Owner::File("web.yaml".to_owned());
    let Edited::Created(created) = put(&store, declare("web", "a", file.clone())).unwrap() else {
        panic!("not created")
    };
    let name = created.name.clone();
    let owned = Refusal::Owned { name: name.clone(), owner: file.clone() };
    assert_eq!(put(&store, declare("web", "b", Owner::Api)).unwrap_err(), owned);
    let mut again = declare("web", "a", file);
    again.precondition =
        Precondition::Unchanged(format!("{}-{}", store.snapshot().epoch, created.rv));
    assert!(matches!(put(&store, again.clone()).unwrap(), Edited::Unchanged(_)));
    again.spec = spec("b");
    put(&store, again.clone()).unwrap();
    assert!(matches!(put(&store, again.clone()).unwrap_err(), Refusal::Stale { .. }));
    again.precondition = Precondition::Absent;
    assert_eq!(put(&store, again.clone()).unwrap_err(), Refusal::Exists { name });
    let how = Delete { uid: Some(uuid::Uuid::nil()), keep_workspace: false, force: true };
    let refused = store.write_blocking(move |core| edit::delete(core, "web", how, Time(7)));
    assert!(matches!(refused.unwrap().unwrap_err(), Refusal::Uid { .. }));
    let how = Delete { uid: Some(created.uid), ..how };
    store.write_blocking(move |core| edit::delete(core, "web", how, Time(7))).unwrap().unwrap();
    again.precondition = Precondition::None;
    assert!(matches!(put(&store, again).unwrap_err(), Refusal::Terminating { .. }));
}

#[test]
fn a_job_that_fails_takes_back_all_of_itself_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    put(&store, declare("a", "x", Owner::Api)).unwrap();
    let rv = store.snapshot().rv;
    let failed = store.write_blocking(|core| {
        edit::put(core, declare("b", "x", Owner::Api), Time(1))?.unwrap();
        Err::<(), _>(StoreError::Busy)
    });
    assert!(failed.is_err());
    let snapshot = store.snapshot();
    assert_eq!((snapshot.sandboxes.len(), snapshot.rv, snapshot.events.len()), (1, rv, 1));
    // A job that changes nothing is no transaction.
    put(&store, declare("a", "x", Owner::Api)).unwrap();
    assert_eq!(store.snapshot().rv, rv);
    // Nor are watchers told of what was taken back.
    put(&store, declare("c", "x", Owner::Api)).unwrap();
    let changes = store.ring().since(rv).unwrap();
    let told: Vec<&str> = changes.iter().map(|one| one.sandbox.name.as_str()).collect();
    assert_eq!(told, ["c"]);
}

#[test]
fn watchers_get_every_change_once_or_are_told_to_start_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let start = store.snapshot().rv;
    for index in 0..20 {
        put(&store, declare(&format!("s{index}"), "x", Owner::Api)).unwrap();
    }
    let changes = store.ring().since(start).unwrap();
    assert_eq!(changes.len(), 20);
    assert!(changes.is_sorted_by(|one, next| one.rv < next.rv));
    assert_eq!(store.ring().since(changes[18].rv).unwrap().len(), 1);
    let reopened = Store::open(store.path()).unwrap();
    assert!(reopened.ring().since(start).is_none());
}

#[test]
fn a_database_that_took_the_place_of_ours_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = Store::open(&path).unwrap();
    std::fs::copy(&path, dir.path().join("other")).unwrap();
    std::fs::rename(dir.path().join("other"), &path).unwrap();
    let refused =
        store.write_blocking(|core| edit::put(core, declare("a", "x", Owner::Api), Time(1)));
    assert!(matches!(refused, Err(StoreError::Gone { .. })), "{refused:?}");
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    drop(Store::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error:?}");
}

#[test]
fn changes_that_wait_for_the_disk_are_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let (go_on, blocked) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel();
    let waiting = |work: Box<dyn FnOnce() -> u8 + Send>| {
        store.submit(move |_| Ok(work()), |done: Result<u8, StoreError>| assert!(done.is_ok()))
    };
    waiting(Box::new(move || {
        began.send(()).unwrap();
        let _ = blocked.recv();
        0
    }))
    .unwrap();
    begun.recv().unwrap();
    for _ in 0..QUEUE_LEN_MAX {
        waiting(Box::new(|| 0)).unwrap();
    }
    assert!(matches!(waiting(Box::new(|| 0)), Err(StoreError::Busy)));
    drop(go_on);
    let again = || {
        let what = declare("a", "x", Owner::Api);
        store.write_blocking(|core| edit::put(core, what, Time(5)))
    };
    while matches!(again(), Err(StoreError::Busy)) {
        std::thread::yield_now();
    }
    again().unwrap().unwrap();
}

#[test]
fn the_oldest_events_go_and_a_watcher_that_is_too_slow_starts_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    put(&store, declare("a", "x", Owner::Api)).unwrap();
    let start = store.snapshot().rv;
    for n in 0..1_100 {
        put(&store, declare("a", &format!("x{n}"), Owner::Api)).unwrap();
    }
    assert!(store.ring().since(start).is_none());
    let many = |core: &mut Core| {
        (0..10_500).try_for_each(|n| {
            core.event(None, sodium_model::Level::Normal, ("Many", n.to_string()), Time(n))
        })
    };
    store.write_blocking(many).unwrap();
    assert_eq!(store.snapshot().events.len(), 1_000);
    let kept = rusqlite::Connection::open(store.path()).unwrap();
    let kept: u32 = kept.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    assert!((10_000..10_300).contains(&kept), "{kept}");
}

#[test]
fn no_more_is_promised_than_there_is_and_what_goes_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = Store::open(&path).unwrap();
    let with = |name: &str, memory_mb| {
        let mut put = declare(name, "x", Owner::Api);
        put.spec.limits.memory_mb = memory_mb;
        put
    };
    put(&store, with("a", 600)).unwrap();
    store.bound(Totals { memory_mb: 1000, ..Totals::default() });
    let refused = put(&store, with("b", 500)).unwrap_err();
    assert!(refused.to_string().contains("memory_mb: 1100 would be promised"), "{refused}");
    put(&store, with("b", 400)).unwrap();
    assert!(matches!(put(&store, with("b", 401)), Err(Refusal::NoRoom { .. })));
    // A job that fails promises nothing.
    let failed = store.write_blocking(move |core| {
        edit::put(core, with("a", 1), Time(1))?.unwrap();
        Err::<(), _>(StoreError::Busy)
    });
    assert!(failed.is_err());
    assert!(put(&store, with("c", 1)).is_err());
    // What is not to run takes none of it, nor does what is gone. The next daemon counts the same.
    let stop = store.write_blocking(|core| edit::power(core, "a", Verb::Stop, Time(6)));
    stop.unwrap().unwrap();
    put(&store, with("c", 600)).unwrap();
    let name = SandboxName::try_from("c").unwrap();
    store.write_blocking(move |core| core.remove(&name)).unwrap();
    let next = Store::open(&path).unwrap();
    assert_eq!(next.snapshot().declared, store.snapshot().declared);
    next.bound(Totals { memory_mb: 1000, sandboxes: 2, ..Totals::default() });
    assert!(matches!(put(&next, with("c", 1)), Err(Refusal::NoRoom { .. })), "a third one");
}

#[test]
fn a_file_that_there_is_no_room_for_says_so_until_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    store.bound(Totals { sandboxes: 1, ..Totals::default() });
    put(&store, declare("a", "x", Owner::Api)).unwrap();
    let name = SandboxName::try_from("b").unwrap();
    let look = || {
        let put = declare("b", "x", Owner::Api);
        let declared = files::Declared {
            name: put.name.clone(),
            path: "b.yaml".to_owned(),
            labels: put.labels,
            spec: put.spec,
        };
        let record = FileRecord { names: vec![put.name], ..FileRecord::default() };
        let changes = files::FileChanges {
            declared: vec![declared],
            records: [("b.yaml".to_owned(), Some(record))].into(),
            ..files::FileChanges::default()
        };
        store.write_blocking(move |core| files::apply(core, changes, Time(7))).unwrap();
        store.snapshot()
    };
    let (first, again) = (look(), look());
    let record = &first.files["b.yaml"];
    assert!(record.conflicts[&name].contains("totals.sandboxes") && record.names.is_empty());
    assert_eq!((first.rv, first.events.len()), (again.rv, again.events.len()), "told once");
    let a = SandboxName::try_from("a").unwrap();
    store.write_blocking(move |core| core.remove(&a)).unwrap();
    let after = look();
    assert!(after.sandboxes.contains_key(&name) && after.files["b.yaml"].conflicts.is_empty());
}

#[test]
fn a_host_uid_is_not_given_again_when_its_sandbox_went() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let gone = |store: &Store, name: &str| {
        let made = put(store, declare(name, "x", Owner::Api)).unwrap();
        let (name, host_uid) = (made.sandbox().name.clone(), made.sandbox().host_uid);
        store.write_blocking(move |core| core.remove(&name)).unwrap();
        host_uid
    };
    let store = Store::open(&path).unwrap();
    let mut given = vec![gone(&store, "a"), gone(&store, "b")];
    // Nor by the next daemon, nor when the database had to be written anew.
    let next = Store::open(&path).unwrap();
    given.push(gone(&next, "a"));
    std::fs::remove_file(&path).unwrap();
    given.push(gone(&next, "c"));
    given.push(gone(&Store::open(&path).unwrap(), "d"));
    assert!(given.is_sorted_by(|one, next| one < next), "{given:?}");
    let range = sodium_model::IdRange::default().users();
    assert!(given.iter().all(|id| range.contains(id)), "{given:?}");
}

#[test]
fn a_sandbox_that_there_is_no_host_uid_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let range = IdRange { first: 100_000, count: 64 };
    let left = |_: &std::ops::Range<u32>| std::collections::BTreeSet::from_iter(100_001..100_015);
    store.give_ids(range, Box::new(left)).unwrap();
    let made = put(&store, declare("a", "x", Owner::Api)).unwrap();
    assert_eq!(made.sandbox().host_uid, 100_000);
    let refused = put(&store, declare("b", "x", Owner::Api)).unwrap_err();
    assert!(refused.to_string().contains("all 15 host uids"), "{refused}");
}

#[test]
fn no_two_sandboxes_have_instances_of_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let uids = [1_u128, 1 | 7 << 90, 2].map(uuid::Uuid::from_u128);
    let mut drawn = uids.into_iter();
    let source = Box::new(move || drawn.next().unwrap());
    let store = Store::open_with(&database_path(dir.path()), source).unwrap();
    let [a, b] = ["a", "b"].map(|name| put(&store, declare(name, "x", Owner::Api)).unwrap());
    assert_eq!([a.sandbox().uid, b.sandbox().uid], [uids[0], uids[2]]);
    let twin = Put { uid: Some(uids[1]), ..declare("c", "x", Owner::Api) };
    assert!(matches!(put(&store, twin), Err(Refusal::Uid { .. })));
}

#[test]
fn specs_are_bounded_by_what_they_weigh_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let heavy = |name: &str, bytes: usize| {
        let mut put = declare(name, "x", Owner::Api);
        put.spec.files = [("a".to_owned(), "x".repeat(bytes))].into();
        put
    };
    let (mut taken, mut refused) = (0, None);
    while refused.is_none() && taken < 100 {
        match put(&store, heavy(&format!("s{taken}"), 8 << 20)) {
            Ok(_) => taken += 1,
            Err(refusal) => refused = Some(refusal.to_string()),
        }
    }
    assert_eq!(taken, 31, "of 8 MiB and something each");
    let why = refused.unwrap();
    assert!(why.contains("no room for s31: specs: 257 MiB would be held"), "{why}");
    // What is to go is still held, less is always fine, and what went makes room.
    put(&store, heavy("s0", 7 << 20)).unwrap();
    assert!(matches!(put(&store, heavy("s0", 20 << 20)), Err(Refusal::NoRoom { .. })));
    let how = edit::Delete { uid: None, keep_workspace: false, force: true };
    store.write_blocking(move |core| edit::delete(core, "s1", how, Time(2))).unwrap().unwrap();
    assert!(matches!(put(&store, heavy("next", 14 << 20)), Err(Refusal::NoRoom { .. })));
    let gone = SandboxName::try_from("s1").unwrap();
    store.write_blocking(move |core| core.remove(&gone)).unwrap();
    put(&store, heavy("next", 14 << 20)).unwrap();
    // What was counted is what is there, whatever happened in between.
    let before = store.snapshot().spec_bytes;
    drop(store);
    assert_eq!(Store::open(&database_path(dir.path())).unwrap().snapshot().spec_bytes, before);
}

#[test]
fn of_what_is_wrong_with_files_no_more_is_kept_than_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&database_path(dir.path())).unwrap();
    let note = |path: String, record: Option<FileRecord>| {
        store.write_blocking(move |core| core.put_file(&path, record)).unwrap();
    };
    let long = |n: usize| {
        let faults = (0..50).map(|_| Violation::new("p".repeat(200), "m".repeat(1000)));
        let name = SandboxName::try_from(format!("s{n}")).unwrap();
        let conflicts = [(name, "c".repeat(1000))].into();
        FileRecord { faults: faults.collect(), conflicts, ..FileRecord::default() }
    };
    for n in 0..600 {
        note(format!("f{n}.yaml"), Some(long(n)));
    }
    let snapshot = store.snapshot();
    let said: usize = snapshot.files.values().map(|record| record.said_bytes()).sum();
    assert_eq!(said, snapshot.said_bytes);
    assert!((16 << 20..17 << 20).contains(&said), "{said}");
    // The last ones are known to be wrong, and to be what they are.
    let last = &snapshot.files["f599.yaml"];
    assert!(last.faults.len() == 1 && last.conflicts.len() == 1 && last.said_bytes() < 300);
    assert!(long(599).is_known_as(last) && !long(598).is_known_as(last));
    let rv = snapshot.rv;
    note("f599.yaml".to_owned(), Some(long(599)));
    assert_eq!(store.snapshot().rv, rv, "nothing new");
    (0..10).for_each(|n| note(format!("f{n}.yaml"), None));
    note("f599.yaml".to_owned(), Some(long(599)));
    assert_eq!(store.snapshot().files["f599.yaml"].faults.len(), 50, "there is room now");
}

#[test]
fn a_look_is_taken_over_in_steps_of_whole_files() {
    let declared = |path: &str, name: &str| {
        let put = declare(name, "x", Owner::Api);
        let path = path.to_owned();
        files::Declared { name: put.name, path, labels: put.labels, spec: put.spec }
    };
    let owned = |name: &str| {
        let name = SandboxName::try_from(name).unwrap();
        files::Owned { name, uid: Uuid::nil(), path: "d.yaml".to_owned() }
    };
    let moved = |name: &str, to: &str| files::Moved { was: owned(name), to: to.to_owned() };
    let record = |path: &str| (path.to_owned(), Some(FileRecord::default()));
    let changes = files::FileChanges {
        root: Some((1, 2)),
        declared: vec![
            declared("a.yaml", "a1"),
            declared("a.yaml", "a2"),
            declared("a.yaml", "a3"),
            declared("b.yaml", "b1"),
            declared("c.yaml", "c1"),
        ],
        moved: vec![moved("c1", "c.yaml"), moved("z", "z.yaml")],
        pruned: vec![owned("old")],
        records: ["a.yaml", "b.yaml", "c.yaml", "d.yaml"].map(record).into(),
        warnings: vec![(None, "Files", "x".to_owned())],
    };
    let slices = changes.clone().slices(2);
    let told: Vec<(usize, usize, usize, usize)> = slices
        .iter()
        .map(|one| (one.declared.len(), one.records.len(), one.moved.len(), one.pruned.len()))
        .collect();
    // What is another file's now is in the record of that before it goes from that of the old one.
    assert_eq!(told, [(0, 0, 0, 1), (4, 2, 1, 0), (1, 1, 1, 0), (0, 1, 0, 0)]);
    assert!(slices[1].records.contains_key("c.yaml") && slices[3].records.contains_key("d.yaml"));
    let warned: Vec<usize> = slices.iter().map(|one| one.warnings.len()).collect();
    assert_eq!((slices[3].root, warned), (Some((1, 2)), vec![0, 1, 0, 0]));
    assert_eq!(changes.slices(100).len(), 3);
    assert!(files::FileChanges::default().slices(100).is_empty());
}
