//! Copies of the store: taken while the daemon runs, refused when they are no good, put back.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::desk::Desk;

fn store(desk: &Desk, verb: &str, file: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sodiumd"))
        .arg("--config")
        .arg(desk.path("config.json"))
        .args(["store", verb])
        .arg(desk.path(file))
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sleeper(seconds: &str) -> Value {
    json!({"command": ["sleep", seconds], "limits": {"timeout_seconds": 0}})
}

async fn put(desk: &Desk, name: &str, spec: &Value) {
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": name}, "spec": spec});
    let done = desk.ask("PUT", &format!("/v1/sandboxes/{name}"), &document.to_string()).await;
    assert!(matches!(done.status, 200 | 201), "{done:?}");
}

#[tokio::test]
async fn a_copy_put_back_runs_what_it_holds_and_nothing_twice() {
    let mut desk = Desk::new().await;
    put(&desk, "a", &sleeper("1000")).await;
    desk.write_spec("f.yaml", "f", &sleeper("1000"));
    desk.wait_phase("a", "Running").await;
    desk.wait_phase("f", "Running").await;
    let done = store(&desk, "backup", "copy.db");
    assert!(done.status.success(), "{}", said(&done));
    let again = store(&desk, "backup", "copy.db");
    assert!(said(&again).contains("is there already"), "{}", said(&again));
    // What comes after the copy.
    put(&desk, "a", &sleeper("2000")).await;
    let changed = |one: &Value| {
        one["status"]["observed_generation"] == 2 && one["status"]["phase"] == "Running"
    };
    let later = desk.wait_for("a", "changed", changed).await;
    put(&desk, "b", &sleeper("3000")).await;
    let stranger = desk.wait_phase("b", "Running").await;
    let busy = store(&desk, "restore", "copy.db");
    assert!(said(&busy).contains("another sodiumd"), "{}", said(&busy));
    desk.kill();
    let done = store(&desk, "restore", "copy.db");
    assert!(done.status.success() && said(&done).contains("before-restore-1"), "{}", said(&done));
    desk.start().await;
    let pid = |one: &Value| one["status"]["instance"]["pid"].as_u64().unwrap_or(0);
    let runs = |pid, seconds| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command == format!("sleep\0{seconds}\0")
    };
    desk.wait_for("a", "as it was", |one| {
        one["status"]["phase"] == "Running" && runs(pid(one), "1000")
    })
    .await;
    // It never runs twice; of what the copy knows nothing, nothing is ended, and that is told.
    assert!(!runs(pid(&later), "2000"));
    assert!(runs(pid(&stranger), "3000"));
    assert!(desk.log().contains("orphan instance found; leaving it alone"), "{}", desk.log());
    assert_eq!(desk.get("/v1/sandboxes/b").await.status, 404);
    desk.wait_phase("f", "Running").await;
}

#[tokio::test]
async fn what_is_no_copy_is_refused_and_changes_nothing() {
    let mut desk = Desk::new().await;
    put(&desk, "a", &json!({"command": ["true"], "state": "stopped"})).await;
    assert!(store(&desk, "backup", "copy.db").status.success());
    desk.kill();
    let kept = fs::read(desk.path("state/sodiumd.db")).unwrap();
    let mut damaged = fs::read(desk.path("copy.db")).unwrap();
    let middle = damaged.len() / 2;
    damaged[100..middle].fill(0x5a);
    fs::write(desk.path("damaged.db"), &damaged).unwrap();
    fs::write(desk.path("text.db"), "not a database").unwrap();
    fs::write(desk.path("empty.db"), "").unwrap();
    let mut newer = fs::read(desk.path("copy.db")).unwrap();
    // The version of the schema, in the header.
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    fs::write(desk.path("newer.db"), &newer).unwrap();
    for (file, want) in [
        ("damaged.db", "damaged"),
        ("text.db", "damaged"),
        ("empty.db", "no database of sodiumd"),
        ("newer.db", "schema 99"),
        ("nowhere.db", "No such file"),
    ] {
        let refused = store(&desk, "restore", file);
        assert!(!refused.status.success() && said(&refused).contains(want), "{}", said(&refused));
    }
    assert_eq!(fs::read(desk.path("state/sodiumd.db")).unwrap(), kept);
    desk.start().await;
    assert_eq!(desk.get("/v1/sandboxes/a").await.status, 200);
}

#[tokio::test]
async fn a_damaged_store_comes_back_with_everything_that_runs_and_removes_nothing() {
    let mut desk = Desk::new().await;
    put(&desk, "a", &sleeper("1000")).await;
    put(&desk, "kept", &json!({"command": ["true"], "state": "stopped"})).await;
    desk.write_spec("f.yaml", "f", &sleeper("1000"));
    desk.write_spec("g.yaml", "g", &sleeper("1000"));
    let mut pids = Vec::new();
    for name in ["a", "f", "g"] {
        pids.push(desk.wait_phase(name, "Running").await["status"]["instance"]["pid"].clone());
    }
    let limits =
        json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0, "memory_mb": 77}});
    put(&desk, "a", &limits).await;
    let adjusted = |one: &Value| one["status"]["observed_generation"] == 2;
    desk.wait_for("a", "adjusted", adjusted).await;
    for how in ["damaged", "gone"] {
        desk.kill();
        let database = desk.path("state/sodiumd.db");
        if how == "damaged" {
            // A log that is not moved into the database yet would make up for what is damaged there.
            let copied = Command::new("python3")
                .args([
                    "-c",
                    "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT 1')",
                ])
                .arg(&database)
                .status();
            assert!(copied.unwrap().success());
            let mut bytes = fs::read(&database).unwrap();
            bytes[..4096].fill(0x5a);
            fs::write(&database, bytes).unwrap();
            let _ = fs::remove_file(desk.path("state/sodiumd.db-wal"));
        } else {
            fs::remove_dir_all(desk.path("state")).unwrap();
        }
        desk.start().await;
        for (name, pid) in ["a", "f", "g"].iter().zip(&pids) {
            let same = |one: &Value| one["status"]["instance"]["pid"] == *pid;
            let one = desk.wait_for(name, "running as before", same).await;
            assert_eq!(one["status"]["restarts"], 0);
        }
        assert_eq!(desk.sandbox("a").await["spec"]["limits"]["memory_mb"], 77);
        let health = desk.get("/health").await.json;
        assert_eq!(health["status"], "degraded");
        let (code, _, said) = desk.cli(&["get"]);
        assert!(code == 0 && said.contains("the store was rebuilt"), "{said}");
        assert!(desk.log().contains("the store was rebuilt"));
        let events = desk.get("/v1/events").await.json.to_string();
        assert!(events.contains("StoreRebuilt"), "{events}");
    }
    // A file that is gone waits for a word, though it is only one.
    fs::remove_file(desk.path("desired/g.yaml")).unwrap();
    let held = |one: &Value| one.to_string().contains("PruneHeld");
    desk.wait_for("g", "held", held).await;
    assert_eq!(desk.sandbox("g").await["status"]["phase"], "Running");
    let (code, ..) = desk.cli(&["confirm"]);
    assert_eq!(code, 0);
    desk.wait_for("g", "gone", |one| one["code"] == "not_found").await;
    assert_eq!(desk.get("/health").await.json["status"], "ok");
}

/// Who can write to a copy decides what is declared, but not whose rights it has or which directories it means.
#[tokio::test]
async fn a_copy_that_was_tampered_with_gives_nobody_the_rights_of_root() {
    let mut desk = Desk::new().await;
    put(&desk, "a", &sleeper("1000")).await;
    let pid = desk.wait_phase("a", "Running").await["status"]["instance"]["pid"].clone();
    desk.kill();
    let database = desk.path("state/sodiumd.db");
    let edit = |sql: &str| {
        let script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit()";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(&database).arg(sql);
        let done = python.output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
    };
    let iid = "UPDATE instances SET doc = replace(doc, '\"iid\":\"', '\"iid\":\"../../')";
    for (sql, why) in [
        ("UPDATE sandboxes SET host_uid = 0", "host uid 0 is not a sandbox's"),
        ("UPDATE sandboxes SET host_uid = 4294967295", "host uid 4294967295 is not a sandbox's"),
        (iid, "names no instance"),
    ] {
        edit(sql);
        desk.start().await;
        let log = desk.log();
        assert!(log.contains(why), "{log}");
        // What is noted beside what runs is believed instead.
        let found = desk.wait_phase("a", "Running").await;
        assert_eq!(found["status"]["instance"]["pid"], pid);
        desk.kill();
    }
}
