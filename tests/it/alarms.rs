//! What is said while a limit is near, and when it is met: on the console, among the events, in the metrics.

use serde_json::{Value, json};

use crate::desk::Desk;

fn spec(isolation: &str, script: &str, limits: Value) -> Value {
    json!({"isolation": isolation, "command": ["python3", "-u", "-c", script], "limits": limits,
        "restart": {"policy": "never"}})
}

/// Waits until this was said of a sandbox.
async fn wait_event(desk: &Desk, name: &str, reason: &str) -> String {
    let deadline = std::time::Instant::now() + crate::desk::PATIENCE;
    loop {
        let events = desk.get(&format!("/v1/events?name={name}")).await.json;
        let items = events["items"].as_array().cloned().unwrap_or_default();
        if let Some(event) = items.iter().find(|one| one["reason"] == reason && one["name"] == name)
        {
            return event["message"].as_str().unwrap().to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "{reason} of {name}: {events:#}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn document(spec: &Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "a"}, "spec": spec})
}

async fn put(desk: &Desk, spec: &Value) {
    let answer = desk.ask("PUT", "/v1/sandboxes/a", &document(spec).to_string()).await;
    assert!(answer.status < 300, "{answer:?}");
}

const GROWS: &str = "kept = [bytearray(b'x' * (1 << 20)) for _ in range(85)]\n\
    import time\nprint('grown')\ntime.sleep(1000)";
const FILLS: &str = "import time\nfile = open('big', 'wb', 0)\n\
    try:\n    while True: file.write(b'x' * (1 << 18))\n\
    except OSError as error: print('refused', error.errno)\n\
    time.sleep(1000)";
const FORKS: &str = "import os, time\n\
    def child():\n    time.sleep(1000)\n\
    n = 0\n\
    time.sleep(3)\n\
    for _ in range(30):\n    try:\n        if os.fork() == 0: child()\n    except OSError: n += 1\n\
    print('refused', n)\ntime.sleep(1000)";
const LOSES_A_CHILD: &str = "import os, time\n\
    time.sleep(3)\n\
    if os.fork() == 0: kept = [bytearray(b'x' * (1 << 20)) for _ in range(400)]\n\
    print('child', os.wait()[1])\ntime.sleep(1000)";

#[tokio::test]
async fn a_limit_that_is_near_or_met_is_said_while_it_is() {
    let desk = Desk::new().await;
    let limits =
        json!({"memory_mb": 96, "disk_mb": 24, "max_processes": 16, "timeout_seconds": 62});
    for (name, script) in
        [("grows", GROWS), ("fills", FILLS), ("forks", FORKS), ("loses", LOSES_A_CHILD)]
    {
        desk.write_spec(&format!("{name}.yaml"), name, &spec("process", script, limits.clone()));
    }
    let near = wait_event(&desk, "grows", "MemoryNearLimit").await;
    assert!(near.contains(" of 96 MiB used"), "{near}");
    desk.wait_logs("grows", "[sodiumd] memory: ").await;
    let full = wait_event(&desk, "fills", "DiskFull").await;
    assert!(full.contains("disk full since "), "{full}");
    desk.wait_logs("fills", "[sodiumd] disk full since ").await;
    desk.wait_logs("fills", "refused 28").await;
    let refused = wait_event(&desk, "forks", "ProcessLimit").await;
    assert!(
        refused.contains("process limit of 16 hit: ") && refused.ends_with("refused"),
        "{refused}"
    );
    let killed = wait_event(&desk, "loses", "OutOfMemory").await;
    assert!(killed.ends_with("memory: 1 OOM kill"), "{killed}");
    // As a whole, though it was a child that took too much.
    let ended = desk.wait_phase("loses", "Failed").await;
    assert_eq!(ended["status"]["last_exit"]["kind"], "oom", "{ended:#}");
    // By the shim, which needs nobody for it; and by us.
    desk.wait_logs("forks", "[sodiumd] 60 s are left of the time limit of 62 s").await;
    wait_event(&desk, "forks", "TimeoutNear").await;
    let ledger = desk.get("/v1/sandboxes/fills/limits").await.json;
    let items = ledger["items"].as_array().unwrap();
    let disk = items.iter().find(|one| one["limit"] == "disk_mb").unwrap();
    assert_eq!(disk["breaches"]["count"], 1, "{disk:#}");
    assert!(disk["usage"].as_u64().unwrap() >= 16, "{disk:#}");
    let Value::String(page) = desk.get("/metrics").await.json else { panic!("no text") };
    for line in [
        "sodiumd_sandboxes{phase=\"Running\"} 3",
        "sodiumd_sandbox_limit{name=\"fills\",limit=\"disk_mb\"} 24",
        "sodiumd_sandbox_limit_verdict{name=\"fills\",limit=\"disk_mb\",verdict=\"enforced\"} 1",
        "sodiumd_sandbox_limit_breaches_total{name=\"fills\",limit=\"disk_mb\"} 1",
        "sodiumd_sandbox_limit_breaches_total{name=\"loses\",limit=\"memory_mb\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
    }
    assert_eq!(desk.ask_as(None, "GET", "/metrics", "").await.status, 401);
}

#[tokio::test]
async fn an_end_has_its_evidence_and_who_asked_for_it() {
    let desk = Desk::new().await;
    let said = "import sys\nfor n in range(2000): print('line', n)\nsys.exit(3)";
    desk.write_spec("a.yaml", "a", &spec("bubblewrap", said, json!({})));
    desk.wait_phase("a", "Failed").await;
    let explained = desk.get("/v1/sandboxes/a/explain").await.json;
    let exit = &explained["observed"]["last_exit"];
    assert_eq!((&exit["code"], &exit["generation"]), (&json!(3), &json!(1)), "{exit:#}");
    assert!(
        exit["counters"]["after"]["cpu_usec"].as_u64()
            > exit["counters"]["before"]["cpu_usec"].as_u64()
    );
    assert!(exit["asked_by"].is_null(), "{exit:#}");
    let last = explained["observed"]["last_output"].as_str().unwrap();
    assert!(last.ends_with("line 1999\n") && (4000..=4096).contains(&last.len()), "{last}");
    let sleeps = spec("bubblewrap", "import time\ntime.sleep(1000)", json!({}));
    desk.write_spec("b.yaml", "b", &sleeps);
    desk.wait_phase("b", "Running").await;
    let mut changed = sleeps.clone();
    changed["env"] = json!({"A": "b"});
    desk.write_spec("b.yaml", "b", &changed);
    let ended = wait_event(&desk, "b", "Ended").await;
    assert!(ended.ends_with(", asked for by file:b.yaml"), "{ended}");
    desk.wait_phase("b", "Running").await;
    desk.post("/v1/sandboxes/b/stop?wait=20s", Value::Null).await;
    let asked = |one: &Value| one["status"]["last_exit"]["asked_by"] == "an operator";
    desk.wait_for("b", "ended by an operator", asked).await;
    let (code, said, _) = desk.cli(&["explain", "a"]);
    assert!(
        code == 0 && said.contains("ended     ") && said.contains("said      line 1999"),
        "{said}"
    );
}

#[tokio::test]
async fn limits_are_changed_live_where_they_can_be_and_plan_says_how() {
    let desk = Desk::new().await;
    let mut spec = spec("bubblewrap", GROWS, json!({"memory_mb": 200, "disk_mb": 24}));
    put(&desk, &spec).await;
    desk.wait_logs("a", "grown").await;
    let before = desk.wait_phase("a", "Running").await;
    let plan = |spec: &Value| {
        let document = document(spec);
        std::fs::write(desk.path("next.yaml"), document.to_string()).unwrap();
        let path = desk.path("next.yaml");
        desk.cli(&["plan", "--file", path.to_str().unwrap()]).1
    };
    spec["limits"] = json!({"memory_mb": 300, "disk_mb": 48, "cpu_percent": 50});
    // The disk is an image, which grows in use only for the kernel's administrator.
    let said = plan(&spec);
    assert!(
        said.contains("limits.memory_mb (live)") || said.contains("memory_mb (live)"),
        "{said}"
    );
    assert!(said.contains("disk_mb (restart)") || said.contains("disk_mb (live)"), "{said}");
    spec["limits"] = json!({"memory_mb": 64, "disk_mb": 24, "cpu_percent": 50});
    let said = plan(&spec);
    assert!(said.contains("memory_mb (refused: below current use)"), "{said}");
    put(&desk, &spec).await;
    let waits =
        |one: &Value| one["status"].to_string().contains("not changed yet: memory_mb refused");
    let waiting = desk.wait_for("a", "told to wait", waits).await;
    assert_eq!(waiting["status"]["instance"]["iid"], before["status"]["instance"]["iid"]);
    spec["limits"] = json!({"memory_mb": 150, "disk_mb": 24, "cpu_percent": 50});
    put(&desk, &spec).await;
    let changed = |one: &Value| one["status"]["limits"][0]["read_back"] == 150;
    let after = desk.wait_for("a", "changed live", changed).await;
    assert_eq!(after["status"]["instance"]["iid"], before["status"]["instance"]["iid"]);
    // The other way round it has to start again, and everything in its workspace is still there.
    spec["limits"]["disk_mb"] = json!(48);
    put(&desk, &spec).await;
    let grown = |one: &Value| one["status"]["limits"][2]["read_back"] == 48;
    desk.wait_for("a", "grown", grown).await;
}
