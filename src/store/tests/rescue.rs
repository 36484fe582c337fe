//! A store that is damaged comes back with what can be read of it and with what runs.

use std::fs;
use std::path::Path;

use super::super::*;
use super::{declare, put};
use sodium_model::{Iid, Instance, InstancePhase, Isolation, Owner, Sandbox, Spec};

const COUNT: usize = 60;

fn filled(dir: &Path) -> Store {
    let store = Store::open(&database_path(dir)).unwrap();
    for index in 0..COUNT {
        let owner = Owner::File(format!("s{index}.yaml"));
        let owner = if index % 2 == 0 { Owner::Api } else { owner };
        put(&store, declare(&format!("s{index}"), "x", owner)).unwrap();
    }
    store
}

/// Waits until the thread that has the database open has closed it, its log moved into it.
fn close(store: Store) {
    let log = store.path().with_extension("db-wal");
    drop(store);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while log.exists() {
        assert!(std::time::Instant::now() < deadline, "the store is not closed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn overwrite(path: &Path, from: usize, length: usize) {
    let mut bytes = fs::read(path).unwrap();
    let end = (from + length).min(bytes.len());
    bytes[from..end].fill(0x5a);
    fs::write(path, bytes).unwrap();
}

/// As it would be noted beside an instance of it.
fn record(sandbox: &Sandbox, generation: u64) -> Record {
    let spec = Spec::clone(&sandbox.spec);
    let instance = Instance {
        iid: Iid::new(sandbox.uid, 3),
        n: 3,
        generation,
        request: 0,
        spec,
        phase: InstancePhase::Running,
        boot_id: "a".to_owned(),
        runtime: Isolation::Process.as_str().to_owned(),
        created_at: Time(1),
        started_at: Some(Time(2)),
        pid: Some(7),
        stop_reason: None,
        forced: false,
        exit: None,
        restored: false,
        released: false,
        reserved: None,
    };
    let mut running = sandbox.clone();
    (running.generation, running.history.instances) = (generation, 3);
    running.instance = Some(Arc::new(instance));
    Record::of(&running).unwrap()
}

#[test]
fn a_page_that_is_damaged_costs_no_row_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = filled(dir.path());
    let before = store.snapshot();
    close(store);
    let size = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    let pages = size / 4096;
    for page in 0..pages {
        let damaged = tempfile::tempdir().unwrap();
        let copy = database_path(damaged.path());
        fs::copy(&path, &copy).unwrap();
        overwrite(&copy, page * 4096, 4096);
        let store = Store::open_or_rescue(&copy, Vec::new, Time(9)).unwrap();
        let after = store.snapshot();
        let rescued = after.rescued.as_ref().unwrap_or_else(|| panic!("page {page} is not missed"));
        assert!(fs::metadata(rescued.aside.as_ref().unwrap()).is_ok());
        assert_ne!(before.epoch, after.epoch, "it is another history");
        // The pages that say where all others are have the whole table in them.
        let kept = after.sandboxes.len();
        assert!(kept + 12 >= COUNT || kept == 0, "page {page}: {kept} of {COUNT}");
        for (name, sandbox) in &after.sandboxes {
            let (old, new) = (&before.sandboxes[name], sandbox);
            assert_eq!((old.uid, &old.spec, &old.owner), (new.uid, &new.spec, &new.owner));
        }
        put(&store, declare("new", "x", Owner::Api)).unwrap();
    }
}

#[test]
fn what_runs_is_known_though_the_store_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = filled(dir.path());
    let before = store.snapshot();
    let epoch = store.epoch();
    close(store);
    let (api, file) = (&before.sandboxes["s2"], &before.sandboxes["s3"]);
    let records = || vec![record(api, 5), record(file, 1)];
    for how in ["gone", "empty", "text"] {
        match how {
            "gone" => fs::remove_file(&path).unwrap(),
            "empty" => fs::write(&path, "").unwrap(),
            _ => fs::write(&path, "no database at all, but long enough to look like one").unwrap(),
        }
        let store = Store::open_or_rescue(&path, records, Time(1_000_000)).unwrap();
        let after = store.snapshot();
        let rescued = after.rescued.as_ref().unwrap();
        assert_eq!((rescued.read, rescued.found, after.sandboxes.len()), (0, 2, 2), "{how}");
        let found = &after.sandboxes["s2"];
        assert_eq!((found.uid, found.generation, found.owner.clone()), (api.uid, 5, Owner::Api));
        assert_eq!(found.live().unwrap().n, 3);
        assert!(found.history.instances > 3, "no number is used again");
        // The file is known to own it: if it is gone, that is an absence, which waits for a word.
        assert_eq!(after.files["s3.yaml"].names.len(), 1);
        assert!(store.epoch() > epoch + 1_000, "shims obey");
        store.write_blocking(files::confirm).unwrap();
        assert_eq!(store.snapshot().rescued, None);
        close(store);
        assert_eq!(Store::open(&path).unwrap().snapshot().rescued, None);
    }
    // Where nothing runs either, nothing was lost that anybody knows of.
    fs::remove_file(&path).unwrap();
    let store = Store::open_or_rescue(&path, Vec::new, Time(9)).unwrap();
    assert_eq!(store.snapshot().rescued, None);
}

#[test]
fn a_newer_edit_of_either_source_is_the_one_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    let store = filled(dir.path());
    for _ in 0..2 {
        for command in ["y", "z"] {
            put(&store, declare("s2", command, Owner::Api)).unwrap();
        }
    }
    let before = store.snapshot();
    close(store);
    let size = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    overwrite(&path, size - 4096, 4096);
    let (newer, older) = (&before.sandboxes["s2"], &before.sandboxes["s4"]);
    let records = || vec![record(newer, 2), record(older, 9)];
    let after = Store::open_or_rescue(&path, records, Time(9)).unwrap().snapshot();
    assert!(after.rescued.is_some());
    assert_eq!(after.sandboxes["s2"].generation, newer.generation);
    assert_eq!(after.sandboxes["s4"].generation, 9);
    assert!(after.sandboxes.len() + 12 >= COUNT);
}

#[test]
fn a_database_that_is_damaged_or_removed_under_the_daemon_is_written_anew_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    close(filled(dir.path()));
    for how in ["filled", "removed", "damaged"] {
        let store = Store::open(&path).unwrap();
        if how == "removed" {
            fs::remove_file(&path).unwrap();
        } else if how == "damaged" {
            overwrite(&path, 4096, usize::MAX - 4096);
        }
        let before = store.snapshot();
        let mut refused = 0;
        for index in 0..COUNT {
            let mut again = declare(
                &format!("s{index}"),
                how,
                before.sandboxes[&*format!("s{index}")].owner.clone(),
            );
            // More than SQLite has in its cache.
            again.spec.files = [("x".to_owned(), "y".repeat(20_000))].into();
            let first = again.clone();
            match store.write_blocking(|core| edit::put(core, first, Time(7))) {
                Ok(done) => drop(done.unwrap()),
                Err(error) => {
                    assert!(error.is_damage(), "{how}: {error:?}");
                    refused += 1;
                    put(&store, again).unwrap();
                }
            }
        }
        assert!(refused <= 1, "{how}: {refused}");
        assert!(dir.path().join("sodiumd.db.damaged-1").exists() || how != "damaged");
        let mine = store.snapshot();
        assert_eq!(mine.rescued, None, "nothing was lost");
        close(store);
        let next = Store::open(&path).unwrap().snapshot();
        assert_eq!(mine.sandboxes, next.sandboxes);
        assert_eq!((&mine.epoch, mine.rv), (&next.epoch, next.rv));
    }
}
