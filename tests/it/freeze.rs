//! Standing still: paused by an operator, or frozen while idle and woken by whatever turns to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE};
use crate::gvisor::versions;

fn reason(sandbox: &Value) -> String {
    let conditions = sandbox["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let running = conditions.into_iter().find(|one| one["type"] == "Running");
    running.map_or_else(String::new, |one| one["reason"].as_str().unwrap().to_owned())
}

fn is_frozen(sandbox: &Value) -> bool {
    reason(sandbox) == "Frozen"
}

/// The groups of an instance in every hierarchy.
fn groups(iid: &str) -> Vec<PathBuf> {
    let roots = ["/sys/fs/cgroup".to_owned()].into_iter().chain(
        std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|dir| dir.path().display().to_string()),
    );
    let ours = roots.flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten());
    let ours = ours.filter(|dir| dir.file_name().to_string_lossy().starts_with("sodiumd-"));
    ours.map(|dir| dir.path().join(iid)).filter(|dir| dir.exists()).collect()
}

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

/// Processor time of a process, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may contain anything.
    let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
}

/// How many gVisor sandboxes live and die here at once.
const CROWD: usize = 200;

#[tokio::test]
async fn two_hundred_idle_sandboxes_cost_nothing_and_leave_nothing() {
    let program = versions().pop().unwrap();
    let mut desk = Desk::with(json!({"gvisor": {"program": program, "idle_freeze": "1s"}})).await;
    let names: Vec<String> = (0..CROWD).map(|n| format!("web-{n:03}")).collect();
    for name in &names {
        let spec = json!({"isolation": "gvisor", "command": ["sleep", "100000"],
            "limits": {"memory_mb": 64, "cpu_percent": 50}});
        desk.write_spec(&format!("{name}.yaml"), name, &spec);
    }
    let deadline = Instant::now() + 6 * PATIENCE;
    loop {
        let all = desk.get("/v1/sandboxes").await.json;
        let frozen = all["items"].as_array().unwrap().iter().filter(|one| is_frozen(one)).count();
        if frozen == CROWD {
            break;
        }
        assert!(Instant::now() < deadline, "{frozen} are frozen\n{}", desk.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let all = desk.get("/v1/sandboxes").await.json["items"].as_array().unwrap().clone();
    let instance = |one: &Value| one["status"]["instance"].clone();
    let pids: Vec<u32> =
        all.iter().map(|one| instance(one)["pid"].as_u64().unwrap().try_into().unwrap()).collect();
    let daemon = desk.daemon.as_ref().unwrap().id();
    let used = || pids.iter().map(|pid| ticks(*pid)).sum::<u64>();
    let (before, own_before) = (used(), ticks(daemon));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(used(), before, "frozen sandboxes used the cpu");
    // A hundredth of a second each; none are expected, a look at one may cost some.
    assert!(ticks(daemon) - own_before <= 6, "the daemon used {}", ticks(daemon) - own_before);
    // Every one can be woken.
    for name in [&names[0], &names[CROWD / 2], &names[CROWD - 1]] {
        assert_eq!(desk.cli(&["exec", name, "--", "true"]).0, 0, "{name}");
    }
    let iids: Vec<String> =
        all.iter().map(|one| instance(one)["iid"].as_str().unwrap().to_owned()).collect();
    for name in &names {
        std::fs::remove_file(desk.path("desired").join(format!("{name}.yaml"))).unwrap();
    }
    let deadline = Instant::now() + 6 * PATIENCE;
    loop {
        // So many at once are held until somebody confirms.
        desk.cli(&["confirm"]);
        let left = desk.get("/v1/sandboxes").await.json["items"].as_array().unwrap().len();
        if left == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{left} are left\n{}", desk.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for (iid, pid) in iids.iter().zip(&pids) {
        assert_eq!(groups(iid), Vec::<PathBuf>::new());
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(iid), "{pid} lives");
    }
    assert_eq!(std::fs::read_dir(desk.path("run/i")).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(desk.dir.path().to_str().unwrap()), "{mounts}");
    desk.kill();
}
