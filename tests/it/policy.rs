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
    let plan = desk.get("/v1/plan").await.json;
    for name in ["runs", "rests"] {
        assert!(plan["refused"][name].as_str().unwrap().contains("isolation_floor"), "{plan:#}");
    }
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

fn document(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn with_memory(memory_mb: u64) -> Value {
    sleeper(json!({"limits": {"memory_mb": memory_mb, "timeout_seconds": 0}}))
}

#[tokio::test]
async fn a_ceiling_holds_for_what_is_declared_and_for_what_was() {
    let desk = Desk::new().await;
    desk.write_spec("large.yaml", "large", &with_memory(300));
    desk.wait_phase("large", "Running").await;
    configure(&desk, json!({"maximum_limits": {"memory_mb": 200, "stop_grace": "5s"}}));
    hang_up(&desk);
    let large = desk.wait_for("large", "refused", refused_by("maximum_limits.memory_mb")).await;
    assert_eq!(large["status"]["phase"], "Running");
    // By the API of now and of then, as a number too high or as none at all.
    for memory_mb in [201, 0] {
        let body = document("other", &with_memory(memory_mb));
        let put = desk.ask("PUT", "/v1/sandboxes/other", &body).await;
        assert_eq!(put.status, 422, "{put:?}");
        assert_eq!(put.json["violations"][0]["path"], "spec.limits.memory_mb", "{put:?}");
        let made = desk.post("/sandboxes", json!({"memory_mb": memory_mb})).await;
        assert_eq!(made.status, 422, "{made:?}");
        assert!(made.json["error"].as_str().unwrap().contains("maximum_limits"), "{made:?}");
    }
    let slow = sleeper(json!({"stop": {"grace": "180days"}, "limits": {"memory_mb": 64}}));
    let put = desk.ask("PUT", "/v1/sandboxes/slow", &document("slow", &slow)).await;
    assert!(put.status == 422 && put.json.to_string().contains("stop_grace"), "{put:?}");
    // What nobody asked for is within.
    let made = desk.post("/sandboxes", json!({})).await;
    assert_eq!(made.json["data"]["limits"]["memory_mb"], 200, "{made:?}");
    // Mended in the file, it is cut down as it runs.
    desk.write_spec("large.yaml", "large", &with_memory(150));
    let cut = |one: &Value| {
        let limits = one["status"]["limits"].as_array().unwrap();
        limits.iter().any(|limit| limit["limit"] == "memory_mb" && limit["requested"] == 150)
    };
    let mended = desk.wait_for("large", "cut down", cut).await;
    assert_eq!(pid(&mended), pid(&large));
    desk.wait_for("large", "allowed", |one| condition(one, "Allowed")["status"] == "True").await;
}

#[tokio::test]
async fn what_takes_for_ever_to_end_is_ended_within_the_ceiling_once_it_is_removed() {
    let desk = Desk::with(json!({"maximum_limits": {"stop_grace": "0s"}})).await;
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let spec = json!({"command": ["bash", "-c", deaf], "stop": {"grace": "100days"},
        "limits": {"timeout_seconds": 0}});
    let put = desk.ask("PUT", "/v1/sandboxes/deaf", &document("deaf", &spec)).await;
    assert_eq!(put.status, 201, "{put:?}");
    desk.wait_phase("deaf", "Running").await;
    configure(&desk, json!({"maximum_limits": {"stop_grace": "1s"}}));
    hang_up(&desk);
    desk.wait_for("deaf", "refused", refused_by("maximum_limits.stop_grace")).await;
    let gone = desk.ask("DELETE", "/v1/sandboxes/deaf?wait=25s", "").await;
    assert_eq!(gone.status, 200, "{gone:?}");
}

#[tokio::test]
async fn all_together_get_no_more_than_the_totals() {
    let desk = Desk::with(json!({"totals": {"memory_mb": 500, "sandboxes": 3}})).await;
    let put = async |name: &str, memory_mb| {
        let body = document(name, &with_memory(memory_mb));
        desk.ask("PUT", &format!("/v1/sandboxes/{name}"), &body).await
    };
    assert_eq!(put("a", 300).await.status, 201);
    let refused = put("b", 201).await;
    assert_eq!((refused.status, &refused.json["code"]), (409, &json!("no_room")), "{refused:?}");
    assert!(refused.json["error"].as_str().unwrap().contains("totals.memory_mb"), "{refused:?}");
    assert_eq!(put("b", 200).await.status, 201);
    for name in ["a", "b"] {
        desk.wait_phase(name, "Running").await;
    }
    // Stopped, it gives its share away, and has to wait until that is free again.
    let stopped = desk.post("/v1/sandboxes/a/stop?wait=30s", Value::Null).await;
    assert_eq!(stopped.status, 200, "{stopped:?}");
    assert_eq!(put("c", 100).await.status, 201);
    desk.wait_phase("c", "Running").await;
    assert_eq!(put("d", 1).await.status, 409, "three are enough");
    let start = desk.post("/v1/sandboxes/a/start?wait=30s", Value::Null).await;
    assert_eq!(start.status, 422, "{start:?}");
    let waits = desk.wait_phase("a", "Pending").await;
    assert_eq!(condition(&waits, "Ready")["reason"], "NoRoom", "{waits:#}");
    assert_eq!(desk.ask("DELETE", "/v1/sandboxes/c?wait=30s", "").await.status, 200);
    desk.wait_phase("a", "Running").await;
}

#[tokio::test]
async fn those_that_grow_at_once_hold_no_more_than_the_totals_beside_what_does_not_shrink() {
    let desk = Desk::with(json!({"totals": {"memory_mb": 1000}})).await;
    // More than it is to have soon.
    let script = "a = b'x' * (300 << 20); print('up', flush=True); import time; time.sleep(1000)";
    let spec = |memory_mb: u64| json!({"command": ["python3", "-c", script], "limits": {"memory_mb": memory_mb}});
    let name = |n: u64| format!("s{n}");
    desk.write_spec("full.yaml", "full", &spec(500));
    desk.wait_logs("full", "up").await;
    for n in 0..6 {
        desk.write_spec(&format!("{}.yaml", name(n)), &name(n), &with_memory(50));
    }
    for n in 0..6 {
        desk.wait_phase(&name(n), "Running").await;
    }
    // All that is declared fits: 64 and six times 150. Each that grows does beside what is held, and so do two; three do not.
    desk.write_spec("full.yaml", "full", &spec(64));
    let shrinks = |sandbox: &Value| sandbox.to_string().contains("below current use");
    desk.wait_for("full", "asked to shrink", shrinks).await;
    for n in 0..6 {
        desk.write_spec(&format!("{}.yaml", name(n)), &name(n), &with_memory(150));
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(6);
    let mut grown = 0;
    while std::time::Instant::now() < deadline {
        let mut held = 500;
        grown = 0;
        for n in 0..6 {
            let limits = desk.sandbox(&name(n)).await["status"]["limits"].clone();
            let memory =
                limits.as_array().unwrap().iter().find(|limit| limit["limit"] == "memory_mb");
            let has = memory.unwrap()["read_back"].as_u64().unwrap();
            let megabytes = if has > 1000 { has >> 20 } else { has };
            grown += u64::from(megabytes > 50);
            held += megabytes;
        }
        assert!(held <= 1000, "{held} MiB are held");
    }
    assert_eq!(grown, 2);
}
