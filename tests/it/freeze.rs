//! Standing still: paused by an operator, or frozen while idle and woken by whatever turns to it.

use std::time::Duration;

use serde_json::json;

use crate::desk::{Desk, is_frozen};
use crate::gvisor::versions;

#[tokio::test]
async fn what_is_paused_stands_still_with_all_its_memory_and_goes_on_when_resumed() {
    let program = versions().pop().unwrap();
    let mut desk = Desk::with(json!({"gvisor": {"program": program}})).await;
    for isolation in ["process", "bubblewrap", "gvisor"] {
        let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
        let spec = json!({"isolation": isolation, "command": ["bash", "-c", script],
            "stop": {"signal": "SIGTERM", "grace": "10s"}});
        desk.write_spec(&format!("{isolation}.yaml"), isolation, &spec);
        desk.wait_logs(isolation, "5\n").await;
        let path = |verb: &str| format!("/v1/sandboxes/{isolation}/{verb}?wait=20s");
        assert_eq!(desk.post(&path("pause"), json!({})).await.status, 200);
        let sandbox = desk.sandbox(isolation).await;
        assert_eq!(sandbox["status"]["phase"], "Paused");
        let pid = sandbox["status"]["instance"]["pid"].clone();
        let before = desk.logs(isolation).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(desk.logs(isolation).await, before, "{isolation} went on");
        let refused = desk.post(&path("exec"), json!({"command": ["true"]})).await;
        assert_eq!((refused.status, &refused.json["code"]), (409, &json!("paused")));
        // A restart of the daemon is nobody's wish to go on.
        desk.kill();
        desk.start().await;
        desk.wait_phase(isolation, "Paused").await;
        assert_eq!(desk.logs(isolation).await, before, "{isolation} went on");
        let (code, _, said) = desk.cli(&["resume", isolation]);
        assert_eq!(code, 0, "{said}");
        let next = before.lines().count() + 3;
        desk.wait_logs(isolation, &format!("{next}\n")).await;
        assert_eq!(desk.sandbox(isolation).await["status"]["instance"]["pid"], pid);
        // Paused again, it can be stopped as if it were not: by its own signal.
        assert_eq!(desk.cli(&["pause", isolation]).0, 0);
        assert_eq!(desk.post(&path("stop"), json!({})).await.status, 200);
        let exit = desk.sandbox(isolation).await["status"]["last_exit"].clone();
        assert_eq!(exit["signal"], "SIGTERM", "{isolation}: {exit}");
        let refused = desk.post(&path("pause"), json!({})).await;
        assert_eq!((refused.status, &refused.json["code"]), (409, &json!("not_running")));
    }
}

#[tokio::test]
async fn an_idle_gvisor_sandbox_is_frozen_and_whatever_turns_to_it_wakes_it() {
    for program in versions() {
        let mut desk =
            Desk::with(json!({"gvisor": {"program": program, "idle_freeze": "2s"}})).await;
        let script = "while read line; do echo got $line; done; echo over";
        let spec = json!({"isolation": "gvisor", "command": ["sh", "-c", script]});
        desk.write_spec("web.yaml", "web", &spec);
        let busy = json!({"isolation": "gvisor", "command": ["sh", "-c", "while :; do :; done"]});
        desk.write_spec("busy.yaml", "busy", &busy);
        let sandbox = desk.wait_for("web", "frozen", is_frozen).await;
        assert_eq!(
            (&sandbox["status"]["phase"], is_frozen(&desk.sandbox("busy").await)),
            (&json!("Running"), false)
        );
        let input = desk.post("/sandboxes/web/input", json!({"input": "one"})).await;
        assert_eq!(input.status, 200);
        desk.wait_logs("web", "got one").await;
        desk.wait_for("web", "frozen again", is_frozen).await;
        // For as long as the program inside runs, it is not idle.
        assert_eq!(desk.cli(&["exec", "web", "--", "sleep", "3"]).0, 0);
        desk.wait_for("web", "frozen again", is_frozen).await;
        desk.kill();
        desk.start().await;
        desk.wait_phase("web", "Running").await;
        assert!(is_frozen(&desk.sandbox("web").await), "a restart of the daemon woke it");
        let stopped = desk.post("/v1/sandboxes/web/stop?wait=20s", json!({})).await;
        assert_eq!(stopped.status, 200, "{stopped:?}");
        let exit = desk.sandbox("web").await["status"]["last_exit"].clone();
        assert_eq!(exit["signal"], "SIGTERM", "{exit}");
        assert!(!is_frozen(&desk.sandbox("busy").await));
    }
}
