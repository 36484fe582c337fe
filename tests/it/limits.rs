//! The ledger: each limit as it was asked for, as the kernel has it, and how often it was met.

use serde_json::{Value, json};

use crate::desk::Desk;

async fn entry(desk: &Desk, name: &str, limit: &str) -> Value {
    let ledger = desk.get(&format!("/v1/sandboxes/{name}/limits")).await.json;
    let items = ledger["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().find(|one| one["limit"] == limit).unwrap_or_else(|| panic!("{ledger:#}"))
}

/// One that meets a limit and says when it has.
fn spec(isolation: &str, script: &str, limits: Value) -> Value {
    json!({"isolation": isolation, "command": ["python3", "-c", script], "limits": limits,
        "restart": {"policy": "never"}})
}

#[tokio::test]
async fn a_limit_that_is_met_is_counted_while_it_runs_and_remembered_after() {
    let desk = Desk::new().await;
    // Each new process is one too many, once there are enough.
    let forks = "import os, time\n\
        n = 0\n\
        for _ in range(40):\n    try:\n        if os.fork() == 0: time.sleep(1000)\n    except OSError: n += 1\n\
        print('refused', n, flush=True)\n\
        time.sleep(1000)";
    let grows =
        "import sys\nkept = []\nfor _ in range(400): kept.append(bytearray(b'x' * (1 << 20)))\n";
    let limits = json!({"max_processes": 16, "memory_mb": 64, "timeout_seconds": 0});
    for isolation in ["bubblewrap", "process"] {
        let (forker, grower) = (format!("forks-{isolation}"), format!("grows-{isolation}"));
        desk.write_spec(
            &format!("{forker}.yaml"),
            &forker,
            &spec(isolation, forks, limits.clone()),
        );
        desk.write_spec(
            &format!("{grower}.yaml"),
            &grower,
            &spec(isolation, grows, limits.clone()),
        );
        desk.wait_logs(&forker, "refused").await;
        desk.wait_phase(&forker, "Running").await;
        let processes = entry(&desk, &forker, "max_processes").await;
        assert_eq!(processes["verdict"], "enforced", "{processes:#}");
        assert_eq!((&processes["usage"], &processes["peak"]), (&json!(16), &json!(16)));
        let refused = processes["breaches"]["count"].as_u64().unwrap();
        let logs = desk.logs(&forker).await;
        assert!(logs.contains(&format!("refused {refused}")), "{logs}: {processes:#}");
        desk.post(&format!("/v1/sandboxes/{forker}/kill?wait=20s"), Value::Null).await;
        let after = entry(&desk, &forker, "max_processes").await;
        assert_eq!(after["breaches"]["count"], refused, "{after:#}");
        assert!(after["breaches"]["last"].is_string() && after["usage"].is_null(), "{after:#}");
        let failed = desk.wait_phase(&grower, "Failed").await;
        assert_eq!(failed["status"]["last_exit"]["kind"], "oom", "{failed:#}");
        let memory = entry(&desk, &grower, "memory_mb").await;
        assert!(memory["breaches"]["count"].as_u64().unwrap() >= 1, "{memory:#}");
        assert_eq!((&memory["requested"], &memory["peak"]), (&json!(64), &json!(64)));
    }
    let (_, table, _) = desk.cli(&["get", "-o", "wide"]);
    assert!(!table.contains("disk_mb") && table.contains("max_processes 2"), "{table}");
    let (_, table, _) = desk.cli(&["get", "grows-process"]);
    assert!(table.contains("VERDICT") && table.contains("PEAK"), "{table}");
}

#[tokio::test]
async fn time_that_ran_out_is_counted_and_a_running_one_says_how_much_it_had() {
    let desk = Desk::new().await;
    let limits = json!({"timeout_seconds": 1});
    desk.write_spec("a.yaml", "a", &spec("bubblewrap", "while True: pass", limits));
    desk.wait_for("a", "timed out", |one| one["status"]["last_exit"]["kind"] == "timeout").await;
    let time = entry(&desk, "a", "timeout_seconds").await;
    assert_eq!(time["breaches"]["count"], 1, "{time:#}");
    let busy =
        spec("bubblewrap", "while True: pass", json!({"cpu_percent": 20, "timeout_seconds": 0}));
    desk.write_spec("b.yaml", "b", &busy);
    desk.wait_phase("b", "Running").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let cpu = entry(&desk, "b", "cpu_percent").await;
    let used = cpu["usage"].as_u64().unwrap();
    assert!((10..=30).contains(&used), "{cpu:#}");
    let disk = entry(&desk, "b", "disk_mb").await;
    let mechanism = json!("ext4 image on a loop device of 1008 MiB, 16 MiB for the console");
    assert_eq!((&disk["verdict"], &disk["mechanism"]), (&json!("enforced"), &mechanism));
    assert_eq!(disk["read_back"], 1024);
}
