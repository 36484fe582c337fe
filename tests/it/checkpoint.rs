//! Memory that is kept: hibernation, checkpoints, and what cannot be kept.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE};
use crate::gvisor::versions;

/// Counts in memory and says so; whoever begins anew begins at 1.
const COUNTER: &str =
    "n=0; exec 7>>said; while :; do n=$((n+1)); echo $n; echo $n >&7; sleep 0.05; done";

fn newest() -> std::path::PathBuf {
    versions().pop().unwrap()
}

fn spec(script: &str, state: &str) -> Value {
    json!({"isolation": "gvisor", "command": ["bash", "-c", script], "state": state,
        "restart": {"policy": "always", "backoff": {"initial": "1s", "max": "1s"}},
        "limits": {"memory_mb": 128}})
}

async fn desk() -> Desk {
    Desk::with(json!({"gvisor": {"program": newest()}})).await
}

fn message(sandbox: &Value, kind: &str) -> String {
    let conditions = sandbox["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|one| one["type"] == kind);
    found.map_or_else(String::new, |one| format!("{}: {}", one["reason"], one["message"]))
}

/// What the counter said, in order; it must have counted without a gap and without a repetition.
fn counted(logs: &str) -> u64 {
    let numbers: Vec<u64> = logs.lines().map(|line| line.parse().unwrap()).collect();
    let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, wanted);
    numbers.len() as u64
}

async fn wait_count(desk: &Desk, name: &str, least: u64) {
    desk.wait_logs(name, &format!("\n{least}\n")).await;
}

#[tokio::test]
async fn what_hibernates_goes_on_where_it_was() {
    let mut desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    let mut before = 20;
    for round in 0..3 {
        wait_count(&desk, "web", before).await;
        desk.write_spec("web.yaml", "web", &spec(COUNTER, "hibernated"));
        let sandbox = desk.wait_phase("web", "Hibernated").await;
        assert!(sandbox["status"]["asleep"]["bytes"].as_u64().unwrap() > 100_000, "{sandbox}");
        assert_eq!(sandbox["status"]["failures"], 0);
        // Its memory is free, and nothing of it runs.
        let left = || std::fs::read_dir(desk.path("run/i")).unwrap().count();
        let deadline = Instant::now() + PATIENCE;
        while left() > 0 {
            assert!(Instant::now() < deadline, "it still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let logs = desk.logs("web").await;
        if round == 1 {
            desk.kill();
            desk.start().await;
            desk.wait_phase("web", "Hibernated").await;
        }
        if round == 2 {
            // By an operator's word, whatever the spec says.
            assert_eq!(desk.cli(&["start", "web"]).0, 0);
        } else {
            desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
        }
        before = counted(&logs) + 10;
        wait_count(&desk, "web", before).await;
    }
    let logs = desk.logs("web").await;
    counted(&logs);
    // The file that it has held open all the while was written to by one and the same program.
    assert_eq!(desk.cli(&["stop", "web"]).0, 0);
    let logs = desk.logs("web").await;
    let uid = desk.sandbox("web").await["metadata"]["uid"].as_str().unwrap().to_owned();
    let files = desk.workspace(&desk.sandbox("web").await);
    let said = std::fs::read_to_string(files.join("said")).unwrap();
    assert!(counted(&said).abs_diff(counted(&logs)) <= 1);
    let kept = std::fs::read_dir(desk.path("state/checkpoints").join(&uid)).unwrap().count();
    assert_eq!(kept, 0, "what was gone on from is left over");
}

#[tokio::test]
async fn a_daemon_that_is_killed_at_any_moment_of_it_neither_loses_nor_repeats_anything() {
    let mut desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    wait_count(&desk, "web", 5).await;
    for round in 0..12_u64 {
        let state = if round % 2 == 0 { "hibernated" } else { "running" };
        desk.write_spec("web.yaml", "web", &spec(COUNTER, state));
        // The debounce, then somewhere in what follows.
        tokio::time::sleep(Duration::from_millis(150 + round * 23)).await;
        desk.kill();
        desk.start().await;
        let wanted = if round % 2 == 0 { "Hibernated" } else { "Running" };
        desk.wait_phase("web", wanted).await;
        let before = desk.logs("web").await;
        counted(&before);
    }
    let before = counted(&desk.logs("web").await);
    wait_count(&desk, "web", before + 5).await;
    counted(&desk.logs("web").await);
}

#[tokio::test]
async fn what_could_not_be_gone_on_from_is_refused_beforehand_and_goes_on() {
    let desk = desk().await;
    let deleted = "exec 7>gone; rm gone; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";
    let terminal = json!({"tty": true});
    let cases = [
        ("deleted", json!({"command": ["bash", "-c", deleted]}), "gone open, which was deleted"),
        ("terminal", terminal, "a terminal cannot be kept"),
        (
            "bubblewrap",
            json!({"isolation": "bubblewrap"}),
            "isolation bubblewrap has no checkpoints",
        ),
    ];
    for (name, extra, why) in cases {
        let write = |state: &str| {
            let mut spec = spec(COUNTER, state);
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            desk.write_spec(&format!("{name}.yaml"), name, &spec);
        };
        write("running");
        desk.wait_logs(name, "5").await;
        let pid = desk.sandbox(name).await["status"]["instance"]["pid"].clone();
        let (code, _, said) = desk.cli(&["checkpoint", name]);
        assert!(code == 1 && said.contains(why), "{name}: {said}");
        write("hibernated");
        let told = |sandbox: &Value| message(sandbox, "Ready").contains(why);
        let sandbox = desk.wait_for(name, "refused", told).await;
        assert!(message(&sandbox, "Ready").contains("CannotHibernate"), "{sandbox}");
        // It goes on as if nobody had asked.
        let logs = desk.logs(name).await;
        let deadline = Instant::now() + PATIENCE;
        while desk.logs(name).await.len() <= logs.len() {
            assert!(Instant::now() < deadline, "{name} stands still");
        }
        assert_eq!(desk.sandbox(name).await["status"]["instance"]["pid"], pid, "{name}");
    }
}

#[tokio::test]
async fn what_is_run_inside_is_waited_for_and_another_runsc_does_not_get_it() {
    let mut desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    wait_count(&desk, "web", 5).await;
    let mut client = desk.command(&["exec", "web", "--", "sleep", "2"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (code, _, said) = desk.cli(&["checkpoint", "web"]);
    assert!(code == 1 && said.contains("run inside by exec"), "{said}");
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "hibernated"));
    desk.wait_phase("web", "Hibernated").await;
    assert_eq!(client.wait().unwrap().code(), Some(0), "it was not waited for");
    let use_runsc = |desk: &Desk, program: &Path| {
        let path = desk.path("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["gvisor"]["program"] = json!(program);
        std::fs::write(path, config.to_string()).unwrap();
    };
    desk.kill();
    use_runsc(&desk, &versions()[0]);
    desk.start().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    let told = |sandbox: &Value| message(sandbox, "Ready").contains("cannot restore");
    let sandbox = desk.wait_for("web", "refused", told).await;
    assert!(!sandbox["status"]["asleep"].is_null(), "it was lost: {sandbox}");
    // Nor does the old one take a checkpoint that a crash could lose.
    desk.write_spec("old.yaml", "old", &spec(COUNTER, "running"));
    wait_count(&desk, "old", 5).await;
    let (code, _, said) = desk.cli(&["checkpoint", "old"]);
    assert!(code == 1 && said.contains("ends a sandbox while it takes a checkpoint"), "{said}");
    desk.kill();
    use_runsc(&desk, &newest());
    desk.start().await;
    let before = counted(&desk.logs("web").await);
    wait_count(&desk, "web", before + 5).await;
    counted(&desk.logs("web").await);
}

#[tokio::test]
async fn a_checkpoint_is_gone_back_to_in_place_and_into_a_new_name() {
    let desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    wait_count(&desk, "web", 10).await;
    let (code, _, said) = desk.cli(&["restore", "web"]);
    assert!(code == 1 && said.contains("no checkpoint"), "{said}");
    assert_eq!(desk.cli(&["checkpoint", "web"]).0, 0);
    let at = counted(&desk.logs("web").await);
    let sandbox = desk.sandbox("web").await;
    assert_eq!(sandbox["status"]["checkpoint"]["has_workspace"], true);
    wait_count(&desk, "web", at + 20).await;
    let (code, _, said) = desk.cli(&["restore", "web", "--to", "twin"]);
    assert_eq!((code, &*said), (0, "twin: Running\n"));
    let twin = desk.wait_logs("twin", "\n").await;
    let first: u64 = twin.lines().next().unwrap().parse().unwrap();
    assert!((10..=at + 1).contains(&first), "the twin goes on with {first}, not near {at}");
    let (code, _, said) = desk.cli(&["restore", "web", "--to", "twin"]);
    assert!(code == 1 && said.contains("exists"), "{said}");
    // In place: memory and files are as they were, and what they have become is put aside.
    assert_eq!(desk.cli(&["restore", "web"]).0, 0);
    let goes_back = |logs: &str| {
        let numbers: Vec<u64> = logs.lines().map(|line| line.parse().unwrap()).collect();
        numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count()
    };
    let deadline = Instant::now() + PATIENCE;
    while goes_back(&desk.logs("web").await) == 0 {
        assert!(Instant::now() < deadline, "{}", desk.logs("web").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let said = std::fs::read_to_string(desk.workspace(&sandbox).join("said")).unwrap();
    counted(&said);
    let aside = desk.path("sandboxes/.removed");
    let labels = std::fs::read_dir(aside).unwrap().flatten();
    let labels: Vec<String> = labels.map(|one| one.file_name().into_string().unwrap()).collect();
    assert!(labels.iter().any(|label| label.starts_with("web.before-restore-")), "{labels:?}");
    // A restart begins anew, and the checkpoint stays.
    assert_eq!(desk.cli(&["restart", "web"]).0, 0);
    assert!(!desk.sandbox("web").await["status"]["checkpoint"].is_null());
    assert_eq!(desk.cli(&["delete", "twin"]).0, 0);
    desk.write_spec("web.yaml", "web", &spec("sleep 1000", "running"));
    desk.wait_for("web", "changed", |sandbox| sandbox["status"]["observed_generation"] == 2).await;
    let (code, _, said) = desk.cli(&["restore", "web"]);
    assert!(code == 1 && said.contains("changed since the checkpoint"), "{said}");
}

#[tokio::test]
async fn a_checkpoint_of_what_is_not_allowed_any_more_is_not_gone_back_to_nor_copied() {
    let desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(COUNTER, "running"));
    wait_count(&desk, "web", 5).await;
    assert_eq!(desk.cli(&["checkpoint", "web"]).0, 0);
    let path = desk.path("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["maximum_limits"] = json!({"cpu_percent": 1});
    std::fs::write(path, config.to_string()).unwrap();
    let pid = desk.daemon.as_ref().unwrap().id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let told = |sandbox: &Value| message(sandbox, "Allowed").contains("maximum_limits.cpu_percent");
    desk.wait_for("web", "refused", told).await;
    for args in [&["restore", "web"][..], &["restore", "web", "--to", "twin"]] {
        let (code, _, said) = desk.cli(args);
        assert!(code == 1 && said.contains("maximum_limits.cpu_percent"), "{args:?}: {said}");
    }
    assert_eq!(desk.get("/v1/sandboxes/twin").await.status, 404);
    // It goes on meanwhile.
    let before = counted(&desk.logs("web").await);
    wait_count(&desk, "web", before + 5).await;
}
