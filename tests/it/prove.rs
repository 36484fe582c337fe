//! `sodiumd prove`, which tries to pass every limit in each isolation: the proof of the whole chain, from the spec to
//! the kernel's answer. And that it finds a limit that is not kept.

use serde_json::{Value, json};

use crate::desk::Desk;

fn limits() -> Value {
    json!({"memory_mb": 96, "cpu_percent": 50, "disk_mb": 24, "max_processes": 24, "max_files": 128,
        "output": 1 << 20, "io": 16 << 20, "timeout_seconds": 0})
}

fn spec(isolation: &str, more: Value) -> Value {
    let mut spec =
        json!({"isolation": isolation, "command": ["sleep", "1000"], "limits": limits()});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// The code it ends with, and each row by what was tried.
fn prove(desk: &Desk, subject: &str) -> (i32, serde_json::Map<String, Value>) {
    let (code, said, error) = desk.cli(&["prove", subject, "-o", "json"]);
    let said: Value =
        serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}{error}"));
    let items = said["items"].as_array().unwrap().iter();
    (code, items.map(|row| (row["limit"].as_str().unwrap().to_owned(), row.clone())).collect())
}

#[track_caller]
fn check(rows: &serde_json::Map<String, Value>, tried: &str, verdict: &str) {
    assert_eq!(rows[tried]["verdict"], verdict, "{tried}: {rows:#?}");
}

const LIMITS: [&str; 9] = [
    "memory_mb",
    "cpu_percent",
    "disk_mb",
    "inodes",
    "max_processes",
    "max_files",
    "timeout_seconds",
    "output",
    "io",
];

/// Some of those that are tried.
const ATTACKS: [&str; 12] = [
    "become root",
    "unshare user",
    "unshare time",
    "setns",
    "mount",
    "device node",
    "trace",
    "raw socket",
    "packet socket",
    "netlink",
    "key ring",
    "io_uring",
];

async fn everything_holds(isolation: &str) {
    let _alone = crate::ALONE.lock().await;
    let runsc = concat!(env!("CARGO_MANIFEST_DIR"), "/target/runsc/bookworm-backports");
    let desk = Desk::with(json!({"gvisor": {"program": runsc}})).await;
    desk.write_spec("a.yaml", "a", &spec(isolation, json!({"strict": true})));
    let before = desk.wait_phase("a", "Running").await;
    let (code, rows) = prove(&desk, "a");
    for tried in LIMITS.iter().chain(&["host", "privileges", "workspace"]) {
        check(&rows, tried, "held");
        let walls = ["host", "privileges", "workspace"].contains(tried);
        assert!(walls || rows[*tried]["mechanism"] != "", "{tried}: {rows:#?}");
    }
    let of_filter = if isolation == "gvisor" { "not applicable" } else { "held" };
    check(&rows, "filter", of_filter);
    for tried in ATTACKS {
        check(&rows, tried, "held");
    }
    check(&rows, "network", "held");
    // And every wall that is promised, by the kernel's word.
    for wall in ["user", "capabilities", "no_new_privs", "filter", "network_namespace"] {
        check(&rows, &format!("wall {wall}"), "held");
    }
    let own = if isolation == "process" { "wall landlock" } else { "wall rootfs" };
    assert!(rows.contains_key(own));
    assert_eq!(code, 0, "{rows:#?}");
    // Whoever was named has not noticed, and of the probe nothing is left.
    let after = desk.sandbox("a").await;
    assert_eq!(after["status"]["instance"]["iid"], before["status"]["instance"]["iid"]);
    assert_eq!(desk.get("/v1/sandboxes").await.json["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_in_bubblewrap() {
    everything_holds("bubblewrap").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_in_gvisor() {
    everything_holds("gvisor").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_for_a_plain_process() {
    everything_holds("process").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_not_kept_is_found_and_so_is_one_that_nobody_asked_for() {
    let _alone = crate::ALONE.lock().await;
    let desk = Desk::with(json!({"disk": {"mechanism": "polled"}})).await;
    let mut loose = spec("bubblewrap", json!({}));
    loose["limits"]["max_processes"] = json!(0);
    // What is in memory beside it would end it before.
    loose["limits"]["memory_mb"] = json!(0);
    desk.write_spec("a.yaml", "a", &loose);
    desk.wait_phase("a", "Running").await;
    let (code, rows) = prove(&desk, "a");
    check(&rows, "disk_mb", "passed");
    check(&rows, "max_processes", "not applicable");
    check(&rows, "max_files", "held");
    assert_eq!(code, 1, "{rows:#?}");
    let (code, _, said) = desk.cli(&["prove", "nobody"]);
    assert!(code == 1 && said.contains("neither a sandbox nor an image"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_proved_without_a_sandbox_and_an_ephemeral_one_too() {
    let _alone = crate::ALONE.lock().await;
    let small = json!({"memory_mb": 96, "disk_mb": 24, "max_processes": 24, "max_files": 128, "cpu_percent": 50});
    let desk = Desk::with(json!({"default_limits": small})).await;
    let ephemeral = spec("bubblewrap", json!({"ephemeral": true, "strict": true}));
    desk.write_spec("a.yaml", "a", &ephemeral);
    let refused = |one: &Value| one["status"].to_string().contains("strict: io is not enforced");
    desk.wait_for("a", "refused, since what is in memory has no disk", refused).await;
    let mut of_memory = ephemeral.clone();
    of_memory["limits"]["io"] = json!(0);
    desk.write_spec("a.yaml", "a", &of_memory);
    let running = |one: &Value| {
        one["status"]["observed_generation"] == 2 && one["status"]["phase"] == "Running"
    };
    desk.wait_for("a", "without a limit on io", running).await;
    let (code, rows) = prove(&desk, "a");
    check(&rows, "disk_mb", "held");
    assert!(rows["disk_mb"]["mechanism"].as_str().unwrap().starts_with("tmpfs"), "{rows:#?}");
    assert_eq!(code, 0, "{rows:#?}");
    let (code, rows) = prove(&desk, "bash");
    check(&rows, "memory_mb", "held");
    assert_eq!(code, 0, "{rows:#?}");
}
