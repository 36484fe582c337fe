//! A host that has cgroups of version 1 alone: as this one looks to a daemon that does not see version 2.

use std::path::Path;

use serde_json::{Value, json};

use crate::desk::Desk;

const BLIND: [&str; 6] =
    ["unshare", "--mount", "sh", "-c", "umount -q /sys/fs/cgroup/unified; exec \"$@\"", "sh"];

async fn entry(desk: &Desk, name: &str, limit: &str) -> Value {
    let ledger = desk.get(&format!("/v1/sandboxes/{name}/limits")).await.json;
    let items = ledger["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().find(|one| one["limit"] == limit).unwrap_or_else(|| panic!("{ledger:#}"))
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "on a newer machine it cannot run, and says so")]
async fn limits_are_kept_by_version_1_alone_and_what_runs_is_adopted() {
    if !Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        eprintln!("SKIPPED: there is no cgroup of version 1 here");
        return;
    }
    let mut desk = Desk::prepared(json!({}));
    desk.within = BLIND.to_vec();
    desk.start().await;
    let limits = json!({"memory_mb": 64, "cpu_percent": 50, "max_processes": 16,
        "timeout_seconds": 0});
    let grows = "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))";
    for isolation in ["bubblewrap", "process"] {
        let spec = |command: Value| {
            json!({"isolation": isolation, "command": command, "limits": limits,
                "restart": {"policy": "never"}})
        };
        let grower = format!("grows-{isolation}");
        desk.write_spec(&format!("{isolation}.yaml"), isolation, &spec(json!(["sleep", "1000"])));
        desk.write_spec(&format!("{grower}.yaml"), &grower, &spec(json!(["python3", "-c", grows])));
        let running = desk.wait_phase(isolation, "Running").await;
        for (limit, mechanism) in [
            ("memory_mb", "cgroup v1 memory.limit_in_bytes"),
            ("cpu_percent", "cgroup v1 cpu.cfs_quota_us"),
            ("max_processes", "cgroup v1 pids.max"),
        ] {
            let entry = entry(&desk, isolation, limit).await;
            let seen = (&entry["verdict"], &entry["mechanism"], &entry["read_back"]);
            assert_eq!(seen, (&json!("enforced"), &json!(mechanism), &limits[limit]), "{entry:#}");
        }
        let ended = desk.wait_phase(&grower, "Failed").await;
        assert_eq!(ended["status"]["last_exit"]["kind"], "oom", "{ended:#}");
        desk.kill();
        desk.start().await;
        let adopted = desk.wait_phase(isolation, "Running").await;
        let pid = |sandbox: &Value| sandbox["status"]["instance"]["pid"].clone();
        assert_eq!(pid(&adopted), pid(&running), "{adopted:#}");
        let refused = desk.post(&format!("/v1/sandboxes/{isolation}/pause"), Value::Null).await;
        assert_eq!((refused.status, &refused.json["code"]), (409, &json!("conflict")));
        desk.post(&format!("/v1/sandboxes/{isolation}/kill?wait=20s"), Value::Null).await;
        desk.wait_phase(isolation, "Stopped").await;
    }
}
