//! Loss of power: on a real file system that then has only what was synced, nothing that was answered is
//! missing, and a store that forgets to sync is found out.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::*;
use super::declare;
use super::disk::Disk;
use sodium_model::Owner;

/// Times that the power fails, each at another moment.
const LOSSES: u64 = 12;

/// Edits one sandbox again and again until the disk is gone. Returns the last generation that was answered
/// before it was.
fn edit_until_dark(path: &Path, disk: &Disk, after: u64) -> u64 {
    let store = Store::open(path).unwrap();
    let switch = disk.arm();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let cutting = scope.spawn(|| {
            while answered.load(Ordering::SeqCst) < after {
                std::thread::yield_now();
            }
            let promised = store.snapshot().sandboxes["web"].generation;
            switch.cut();
            promised
        });
        for n in 1_u64.. {
            let what = declare("web", &format!("edit-{after}-{n}"), Owner::Api);
            match store.write_blocking(|core| edit::put(core, what, Time(5))) {
                Ok(done) => drop(done.unwrap()),
                Err(error) => {
                    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
                    assert!(store.fault().is_some());
                    break;
                }
            }
            answered.store(n, Ordering::SeqCst);
        }
        cutting.join().unwrap()
    })
}

/// The generations that were answered and are missing, over several losses.
fn lost(bug: Option<Bug>) -> Vec<(u64, u64)> {
    fault::set_bug(bug);
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&dir.path().join("disk"), 24);
    let path = database_path(&disk.at);
    let mut missing = Vec::new();
    for loss in 0..LOSSES {
        let answered = edit_until_dark(&path, &disk, 1 + loss * 7);
        disk.mount_again("rw");
        let store = Store::open_or_rescue(&path, Vec::new, Time(6)).unwrap();
        let snapshot = store.snapshot();
        assert_eq!(snapshot.rescued, None, "power alone damages nothing");
        let found = snapshot.sandboxes.get("web").map_or(0, |web| web.generation);
        if found < answered {
            missing.push((answered, found));
        }
        // The thread that has it open ends before the disk goes.
        drop(store);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fault::set_bug(None);
    missing
}

#[test]
fn what_was_answered_survives_a_loss_of_power() {
    assert_eq!(lost(None), []);
}

#[test]
fn a_commit_that_is_not_synced_would_be_found_out() {
    assert_ne!(lost(Some(Bug::CommitNotSynced)), []);
}
