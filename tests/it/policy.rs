//! What was declared when more was allowed: whatever the way to a start, the rules of now are asked.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::desk::Desk;

fn sleeper(more: Value) -> Value {
    let mut spec = json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Gives these keys of config.json other values.
fn configure(desk: &Desk, keys: Value) {
    let path = desk.path("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

fn hang_up(desk: &Desk) {
    let pid = desk.daemon.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

fn condition<'v>(sandbox: &'v Value, kind: &str) -> &'v Value {
    let conditions = sandbox["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

/// Whether the host is said not to allow it, by this key of config.json.
fn refused_by(key: &str) -> impl Fn(&Value) -> bool {
    move |sandbox| {
        let said = condition(sandbox, "Allowed");
        let message = said["message"].as_str().unwrap_or_default();
        said["status"] == "False" && said["reason"] == "PolicyRefused" && message.contains(key)
    }
}

fn pid(sandbox: &Value) -> u64 {
    sandbox["status"]["instance"]["pid"].as_u64().unwrap()
}

#[tokio::test]
async fn a_floor_that_is_raised_holds_for_the_next_start_of_what_was_declared_below_it() {
    let mut desk = Desk::new().await;
    let plain = sleeper(json!({"isolation": "process"}));
    for name in ["runs", "rests"] {
        desk.write_spec(&format!("{name}.yaml"), name, &plain);
        desk.wait_phase(name, "Running").await;
    }
    let stopped = desk.post("/v1/sandboxes/rests/stop?wait=30s", Value::Null).await;
    assert_eq!(stopped.status, 200, "{stopped:?}");
    // By a reload: what runs goes on, and both say what will become of them.
    configure(&desk, json!({"isolation_floor": "bubblewrap"}));
    hang_up(&desk);
    let runs = desk.wait_for("runs", "refused", refused_by("isolation_floor")).await;
    assert_eq!(runs["status"]["phase"], "Running");
    desk.wait_for("rests", "refused", refused_by("isolation_floor")).await;
    let start = desk.post("/v1/sandboxes/rests/start?wait=30s", Value::Null).await;
    assert_eq!(start.status, 422, "{start:?}");
    assert!(start.json["error"].as_str().unwrap().contains("isolation_floor"), "{start:?}");
    let explained = desk.get("/v1/sandboxes/rests/explain").await.json;
    assert_eq!(explained["decided"]["next"], "nothing", "{explained:#}");
    assert!(explained["decided"]["why"].as_str().unwrap().contains("isolation_floor"));
    // By a restart of the daemon: the same. And a restart of what runs is its end.
    desk.kill();
    desk.start().await;
    let adopted = desk.wait_for("runs", "refused", refused_by("isolation_floor")).await;
    assert_eq!(pid(&adopted), pid(&runs));
    let again = desk.post("/v1/sandboxes/runs/restart?wait=30s", Value::Null).await;
    assert_eq!(again.status, 422, "{again:?}");
    let down = desk.wait_phase("runs", "Failed").await;
    assert_eq!(condition(&down, "Ready")["reason"], "PolicyRefused", "{down:#}");
    // Lowered, they are as they are declared.
    configure(&desk, json!({"isolation_floor": "process"}));
    hang_up(&desk);
    for name in ["runs", "rests"] {
        let up = desk.wait_phase(name, "Running").await;
        assert_eq!(condition(&up, "Allowed")["status"], "True", "{up:#}");
    }
}

#[tokio::test]
async fn a_network_that_is_switched_off_is_off_for_what_had_it() {
    let mut desk = Desk::with(json!({"network": {"enabled": true}})).await;
    desk.write_spec("open.yaml", "open", &sleeper(json!({"network": "host"})));
    desk.wait_phase("open", "Running").await;
    desk.kill();
    configure(&desk, json!({"network": {"enabled": false}, "enforce": "now"}));
    desk.start().await;
    let down = desk.wait_phase("open", "Failed").await;
    assert!(refused_by("network")(&down), "{down:#}");
    assert_eq!(down["status"]["last_exit"]["reason"], "policy", "{down:#}");
    assert_eq!(down["status"]["failures"].as_u64().unwrap_or(0), 0, "{down:#}");
}

#[tokio::test]
async fn what_is_enforced_at_once_stops_what_runs_at_the_reload() {
    let desk = Desk::with(json!({"enforce": "now"})).await;
    desk.write_spec("plain.yaml", "plain", &sleeper(json!({"isolation": "process"})));
    desk.write_spec("fine.yaml", "fine", &sleeper(json!({"isolation": "bubblewrap"})));
    desk.wait_phase("plain", "Running").await;
    let fine = desk.wait_phase("fine", "Running").await;
    configure(&desk, json!({"isolation_floor": "bubblewrap"}));
    hang_up(&desk);
    desk.wait_phase("plain", "Failed").await;
    assert_eq!(pid(&desk.sandbox("fine").await), pid(&fine));
    assert_eq!(condition(&desk.sandbox("fine").await, "Allowed"), &Value::Null);
}
