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
    assert!(desk.log().contains("no record explains it: left alone"), "{}", desk.log());
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
