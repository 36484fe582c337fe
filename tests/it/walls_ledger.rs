//! The ledger of walls: each is what the kernel says of the process that runs, as a second look from here confirms,
//! and it is still known when another daemon has taken over.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::desk::Desk;
use crate::gvisor::versions;

/// Starts a daemon on a kernel that has no Landlock, as far as it can tell.
const NO_LANDLOCK: [&str; 2] =
    ["python3", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/no_landlock.py")];
const KINDS: [(&str, &str); 7] = [
    ("user_namespace", "user"),
    ("mount_namespace", "mnt"),
    ("pid_namespace", "pid"),
    ("ipc_namespace", "ipc"),
    ("uts_namespace", "uts"),
    ("network_namespace", "net"),
    ("cgroup_namespace", "cgroup"),
];
/// Promised by every isolation to a daemon that runs as root.
const ALWAYS: [&str; 4] = ["user", "capabilities", "no_new_privs", "filter"];

fn spec(isolation: &str) -> Value {
    json!({"isolation": isolation, "command": ["sleep", "1000"],
        "limits": {"memory_mb": 128, "disk_mb": 0}})
}

/// Each wall by its name.
async fn walls(desk: &Desk, name: &str) -> BTreeMap<String, Value> {
    let ledger = desk.get(&format!("/v1/sandboxes/{name}/limits")).await.json;
    let walls = ledger["walls"].as_array().unwrap_or_else(|| panic!("{ledger:#}"));
    walls.iter().map(|one| (one["wall"].as_str().unwrap().to_owned(), one.clone())).collect()
}

fn condition(sandbox: &Value) -> Value {
    let all = sandbox["status"]["conditions"].as_array().unwrap();
    all.iter().find(|one| one["type"] == "WallsEnforced").unwrap().clone()
}

/// The host's, or its own, by the links that the test sees.
fn seen_from_here(pid: u64, kind: &str) -> &'static str {
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    if link(&pid.to_string()) == link("self") { "host" } else { "own" }
}

#[track_caller]
fn check(walls: &BTreeMap<String, Value>, wall: &str, verdict: &str) {
    assert_eq!(walls[wall]["verdict"], verdict, "{wall}: {walls:#?}");
}

/// What is the same for all: the ledger says what /proc says, nothing promised is missing, and all of it outlives
/// the daemon.
async fn is_true(desk: &mut Desk, isolation: &str) -> BTreeMap<String, Value> {
    desk.write_spec("a.yaml", "a", &spec(isolation));
    let running = desk.wait_phase("a", "Running").await;
    let found = walls(desk, "a").await;
    let pid = running["status"]["instance"]["pid"].as_u64().unwrap();
    for (wall, kind) in KINDS {
        assert_eq!(found[wall]["effective"], seen_from_here(pid, kind), "{wall}: {found:#?}");
    }
    let uid = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = uid.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uid = uid.split_whitespace().next().unwrap();
    let said = found["user"]["effective"].as_str().unwrap();
    assert!(said.starts_with(&format!("uid {uid}")), "{found:#?}");
    for wall in ALWAYS {
        check(&found, wall, "enforced");
    }
    assert!(found.values().all(|one| one["verdict"] != "not_enforced"), "{found:#?}");
    assert_eq!(condition(&running)["status"], "True", "{running:#}");
    desk.kill();
    desk.start().await;
    assert_eq!(walls(desk, "a").await, found);
    found
}

#[tokio::test]
async fn the_walls_of_bubblewrap_are_read_back() {
    let mut desk = Desk::new().await;
    let found = is_true(&mut desk, "bubblewrap").await;
    for (wall, _) in KINDS {
        check(&found, wall, "enforced");
    }
    check(&found, "rootfs", "enforced");
    assert_eq!(found["rootfs"]["effective"], "own, read-only");
    assert_eq!(found["capabilities"]["effective"], "none");
    assert!(!found.contains_key("landlock") && !found.contains_key("kernel"), "{found:#?}");
    let (_, table, _) = desk.cli(&["get", "-o", "wide"]);
    assert!(table.contains("WALLS") && table.contains("12 enforced"), "{table}");
    let (_, table, _) = desk.cli(&["get", "a"]);
    assert!(table.contains("EFFECTIVE") && table.contains("no_new_privs"), "{table}");
    let page = desk.get("/metrics").await.json;
    let sample = "sodiumd_sandbox_wall{name=\"a\",wall=\"filter\"} 1\n";
    assert!(page.as_str().unwrap().contains(sample), "{page:#}");
    let (_, said, _) = desk.cli(&["explain", "a"]);
    assert!(said.contains("walls     12 enforced"), "{said}");
}

#[tokio::test]
async fn the_walls_of_gvisor_are_read_back() {
    for program in versions() {
        let mut desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let found = is_true(&mut desk, "gvisor").await;
        for wall in ["kernel", "user_namespace", "mount_namespace", "network_namespace", "rootfs"] {
            check(&found, wall, "enforced");
        }
        // gVisor's own process is in the host's; its guest is not.
        check(&found, "pid_namespace", "none");
        let kernel = found["kernel"]["mechanism"].as_str().unwrap();
        assert!(kernel == "gVisor systrap" || kernel == "gVisor ptrace", "{found:#?}");
    }
}

#[tokio::test]
async fn the_walls_of_a_plain_process_are_read_back() {
    let mut desk = Desk::new().await;
    let found = is_true(&mut desk, "process").await;
    for wall in ["mount_namespace", "pid_namespace", "ipc_namespace", "network_namespace"] {
        check(&found, wall, "enforced");
        assert_eq!(found[wall]["effective"], "own");
    }
    check(&found, "landlock", "enforced");
    check(&found, "rootfs", "none");
    // The kernel does not tell, and the ledger does not say that it did.
    assert_eq!(found["landlock"]["effective"], Value::Null);
    assert!(found["landlock"]["reason"].as_str().unwrap().contains("applied by the start"));
}

#[tokio::test]
async fn a_network_that_is_the_hosts_is_said_to_be() {
    let desk = Desk::with(json!({"network": {"enabled": true}})).await;
    let mut open = spec("bubblewrap");
    open["network"] = json!("host");
    desk.write_spec("a.yaml", "a", &open);
    desk.wait_phase("a", "Running").await;
    let found = walls(&desk, "a").await;
    check(&found, "network_namespace", "none");
    assert_eq!(found["network_namespace"]["effective"], "host");
    check(&found, "ipc_namespace", "enforced");
}

#[tokio::test]
async fn strict_refuses_what_a_host_cannot_keep_in_and_names_the_wall() {
    let mut desk = Desk::prepared(json!({}));
    desk.within = NO_LANDLOCK.to_vec();
    desk.start().await;
    let mut process = spec("process");
    desk.write_spec("lax.yaml", "lax", &process);
    let lax = desk.wait_phase("lax", "Running").await;
    let found = walls(&desk, "lax").await;
    check(&found, "landlock", "not_enforced");
    // That the daemon is under a filter itself makes none of them the sandbox's.
    check(&found, "filter", "enforced");
    assert_eq!(found["filter"]["effective"], "1 of its own");
    let said = condition(&lax);
    assert_eq!((&said["status"], &said["reason"]), (&json!("False"), &json!("NotEnforced")));
    let message = said["message"].as_str().unwrap();
    assert!(message.starts_with("landlock is not enforced"), "{message}");
    process["strict"] = json!(true);
    desk.write_spec("strict.yaml", "strict", &process);
    let strict = desk.wait_phase("strict", "Failed").await;
    assert_eq!(strict["status"]["instance"], Value::Null, "{strict:#}");
    assert_eq!(strict["status"]["last_exit"], Value::Null, "nothing of it ever ran: {strict:#}");
    assert_eq!(condition(&strict)["message"], message);
    let (_, table, _) = desk.cli(&["get", "-o", "wide"]);
    assert!(table.contains("strict: landlock is not enforced"), "{table}");
    // What already runs is not let go on, either, once its spec is strict.
    desk.write_spec("lax.yaml", "lax", &process);
    let ended = |one: &Value| one["status"]["last_exit"]["reason"] == "walls";
    let ended = desk.wait_for("lax", "ended", ended).await;
    let hint = ended["status"]["last_exit"]["hint"].as_str().unwrap();
    assert!(hint.starts_with("strict: landlock is not enforced"), "{ended:#}");
    // Other isolations need none.
    let mut bubblewrap = spec("bubblewrap");
    bubblewrap["strict"] = json!(true);
    desk.write_spec("apart.yaml", "apart", &bubblewrap);
    desk.wait_phase("apart", "Running").await;
}
