//! Databases of every released schema open, whole, and can be written.

use std::path::Path;

use super::super::*;
use super::{declare, put};
use sodium_model::{ExitKind, InstancePhase, Owner, Power};

/// The database as a daemon of the first schema left it, killed while it had everything to do.
fn first(dir: &Path) -> Store {
    let path = database_path(dir);
    let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/1/store.sql");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&std::fs::read_to_string(dump).unwrap()).unwrap();
    drop(connection);
    Store::open_or_rescue(&path, Vec::new, Time(1)).unwrap()
}

#[test]
fn the_first_schema_says_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = first(dir.path());
    let snapshot = store.snapshot();
    assert_eq!(snapshot.rescued, None);
    assert_eq!((store.epoch(), snapshot.rv, &*snapshot.epoch), (2, 49, "d387e53d"));
    let line = |one: &Arc<sodium_model::Sandbox>| {
        let instance = one.instance.as_ref().map(|instance| {
            let exit = instance.exit.as_ref().map_or_else(String::new, |exit| exit.summary());
            format!("{} {:?} {exit}", instance.n, instance.phase)
        });
        let Power { hold, paused, request, .. } = one.power;
        let instance = instance.unwrap_or_default();
        format!(
            "{} {} g{} {:?} {paused} r{request} | {instance}",
            one.name, one.owner, one.generation, hold
        )
    };
    let lines: Vec<String> = snapshot.sandboxes.values().map(line).collect();
    assert_eq!(
        lines,
        [
            "api api g2 None false r0 | 1 Running ",
            "asked api g1 Some(Started) false r1 | 1 Running ",
            "broken file:broken.yaml g1 None false r0 | 1 Dead exited with code 0",
            "crash api g1 Some(Killed) false r0 | 1 Dead exited with code 1",
            "held api g1 Some(Stopped) false r0 | 1 Dead killed by SIGTERM",
            "once file:renamed.yaml g1 None false r0 | 1 Dead exited with code 3",
            "paused api g1 None true r0 | 1 Running ",
            "web file:web.yaml g1 None false r0 | 1 Running ",
        ]
    );
    let api = &snapshot.sandboxes["api"];
    assert_eq!((api.spec.limits.memory_mb, api.spec.env["A"].as_str()), (96, "b"));
    let once = snapshot.sandboxes["once"].last_exit().unwrap();
    assert_eq!(once.kind, ExitKind::Exited { code: 3 });
    assert!(snapshot.sandboxes["crash"].history.not_before.is_some());
    assert_eq!(api.live().unwrap().phase, InstancePhase::Running);
    assert_eq!(snapshot.files["broken.yaml"].faults.len(), 1);
    assert_eq!(snapshot.conflicts.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["api"]);
    assert_eq!(snapshot.events.len(), 37);
    // It goes on from there.
    put(&store, declare("api", "x", Owner::Api)).unwrap();
    assert_eq!(store.snapshot().sandboxes["api"].generation, 3);
}

#[test]
fn what_the_first_release_noted_beside_what_runs_is_read() {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/1/record.json");
    let record: Record = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let sandbox = record.into_sandbox();
    assert_eq!((sandbox.name.as_str(), sandbox.generation, sandbox.host_uid), ("api", 2, 200_003));
    assert_eq!(sandbox.live().unwrap().iid.as_str(), "9421dce7-1");
    assert_eq!(sandbox.spec.limits.memory_mb, 96);
}
