//! Sandboxes that were started ahead, seen from outside: nobody can tell, but for the time it takes.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE};
use crate::gvisor::versions;

/// A daemon with an image of which two are to be ready.
async fn desk() -> Desk {
    let program = versions().pop().unwrap();
    let extra = json!({"images_path": "./images", "gvisor": {"program": program}});
    let mut desk = Desk::prepared(extra);
    let image = json!({"id": "ready", "name": "Ready", "runtime": "bash", "warm": 2,
        "startup": "bash main.sh", "limits": {"memory_mb": 128}, "files": {"main.sh": "echo image\n"}});
    std::fs::create_dir(desk.path("images")).unwrap();
    std::fs::write(desk.path("images/ready.json"), image.to_string()).unwrap();
    desk.start().await;
    wait_ready(&desk, 2).await;
    desk
}

async fn wait_ready(desk: &Desk, count: u64) {
    let deadline = Instant::now() + PATIENCE;
    while desk.get("/health").await.json["warm"]["ready"] != count {
        assert!(Instant::now() < deadline, "not ready\n{}", desk.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn spec(extra: &Value) -> Value {
    let script = "hostname; id -u; echo $A; pwd; cat main.sh; echo mine > own; cat /proc/self/status | \
        grep CapBnd; echo up; n=0; while :; do n=$((n+1)); echo $n > count; sleep 0.05; done";
    let mut spec = json!({"image": "ready", "isolation": "gvisor", "command": ["bash", "-c", script],
        "env": {"A": "of its spec"}, "limits": {"max_processes": 20, "max_files": 99},
        "stop": {"signal": "SIGKILL", "grace": "1s"}});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// Directories of instances and of what waits.
fn dirs(desk: &Desk) -> Vec<String> {
    let dirs = std::fs::read_dir(desk.path("run/i")).unwrap().flatten();
    dirs.map(|dir| dir.file_name().into_string().unwrap()).collect()
}

/// Who the users of a guest are on the host.
fn host_ids(desk: &Desk, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(desk.path("run/i").join(name).join("config.json")).unwrap();
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let mappings = bundle["linux"]["uidMappings"].as_array().unwrap().clone();
    mappings.iter().map(|one| one["hostID"].to_string()).collect()
}

#[tokio::test]
async fn one_that_was_started_ahead_is_as_one_that_was_not() {
    let mut desk = desk().await;
    let waiting = dirs(&desk);
    assert!(waiting.len() == 2 && waiting.iter().all(|name| name.ends_with("-0")), "{waiting:?}");
    assert_eq!(desk.get("/v1/sandboxes").await.json["items"], json!([]), "it is nobody's sandbox");
    desk.write_spec("web.yaml", "web", &spec(&json!({})));
    let said = desk.wait_logs("web", "up\n").await;
    let want =
        "web\n1000\nof its spec\n/home/container\necho image\nCapBnd:\t0000000000000000\nup\n";
    assert_eq!(said, want);
    // It was one of those.
    assert!(dirs(&desk).iter().any(|name| waiting.contains(name)));
    let sandbox = desk.wait_phase("web", "Running").await;
    let iid = sandbox["status"]["instance"]["iid"].as_str().unwrap().to_owned();
    let link = std::fs::read_link(desk.path("run/i").join(&iid)).unwrap();
    assert!(waiting.contains(&link.to_str().unwrap().to_owned()));
    // Its files are on disk, and its own.
    let files = desk.workspace(&sandbox);
    let owner = std::fs::metadata(&files).unwrap().uid();
    assert_eq!(std::fs::read_to_string(files.join("own")).unwrap(), "mine\n");
    assert_eq!(std::fs::metadata(files.join("own")).unwrap().uid(), owner);
    // The pool is filled again.
    wait_ready(&desk, 2).await;
    let (code, out, said) =
        desk.cli(&["exec", "web", "--", "sh", "-c", "ulimit -n; hostname; cat own"]);
    assert_eq!((code, &*out), (0, "99\nweb\nmine\n"), "{said}");
    assert_eq!(desk.cli(&["pause", "web"]).0, 0);
    assert_eq!(desk.cli(&["resume", "web"]).0, 0);
    // Adopted by the next daemon, which has no use for what the last one had ready.
    let before = dirs(&desk);
    desk.kill();
    desk.start().await;
    wait_ready(&desk, 2).await;
    let after = dirs(&desk);
    assert!(after.contains(&iid) && after.len() == 4, "{before:?} {after:?}");
    assert_eq!(desk.sandbox("web").await["status"]["instance"]["iid"], json!(iid));
    let mut ids: Vec<String> = after.iter().flat_map(|name| host_ids(&desk, name)).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    // The guests of three directories; the fourth is a link to one of these.
    assert!(all == 8 && ids.len() == 6, "two guests are the same user of the host: {ids:?}");
    // Its memory can be kept, and goes on in one that was not started ahead.
    let count = || -> u64 {
        std::fs::read_to_string(files.join("count")).unwrap().trim().parse().unwrap_or(0)
    };
    desk.write_spec("web.yaml", "web", &spec(&json!({"state": "hibernated"})));
    desk.wait_phase("web", "Hibernated").await;
    let kept = count();
    desk.write_spec("web.yaml", "web", &spec(&json!({"state": "running"})));
    desk.wait_phase("web", "Running").await;
    let deadline = Instant::now() + PATIENCE;
    while count() < kept + 3 {
        assert!(Instant::now() < deadline, "it does not go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(count() < kept + 1000, "it began anew");
    desk.post("/v1/sandboxes/web/kill?wait=20s", json!({})).await;
    std::fs::remove_file(desk.path("desired/web.yaml")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while dirs(&desk).len() != 2 || dirs(&desk).iter().any(|name| !name.ends_with("-0")) {
        assert!(Instant::now() < deadline, "{:?}", dirs(&desk));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_end_leaves_none_waiting() {
    let mut desk = desk().await;
    desk.write_spec("web.yaml", "web", &spec(&json!({})));
    desk.wait_logs("web", "up\n").await;
    wait_ready(&desk, 2).await;
    let mut daemon = desk.daemon.take().unwrap();
    std::process::Command::new("kill").arg(daemon.id().to_string()).status().unwrap();
    assert!(daemon.wait().unwrap().success());
    // What was given to somebody goes on: under its own name, and the one it was started under.
    let left = dirs(&desk);
    let waited = left.iter().filter(|name| name.ends_with("-0")).count();
    assert_eq!((left.len(), waited), (2, 1), "{left:?}");
    desk.start().await;
    desk.wait_phase("web", "Running").await;
}

#[tokio::test]
async fn who_asks_for_something_else_is_not_given_it() {
    let desk = desk().await;
    let others = [
        json!({"limits": {"memory_mb": 96}}),
        json!({"limits": {"cpu_percent": 150}}),
        json!({"tty": true}),
        json!({"isolation": "bubblewrap"}),
    ];
    let before = dirs(&desk);
    for (n, other) in others.iter().enumerate() {
        let name = format!("web-{n}");
        desk.write_spec(&format!("{name}.yaml"), &name, &spec(other));
        desk.wait_phase(&name, "Running").await;
    }
    let after = dirs(&desk);
    assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
    assert_eq!(after.len(), before.len() + others.len(), "{after:?}");
    assert_eq!(desk.get("/health").await.json["warm"]["ready"], 2);
}

#[tokio::test]
async fn one_that_died_while_it_waited_is_passed_over() {
    let desk = desk().await;
    for name in dirs(&desk) {
        let pid = std::fs::read_to_string(desk.path("run/i").join(&name).join("pid")).unwrap();
        let killed = std::process::Command::new("kill").args(["-9", pid.trim()]).status();
        assert!(killed.unwrap().success());
    }
    desk.write_spec("web.yaml", "web", &spec(&json!({})));
    desk.wait_logs("web", "up\n").await;
    let sandbox = desk.wait_phase("web", "Running").await;
    assert_eq!(sandbox["status"]["failures"], 0, "{sandbox}");
    wait_ready(&desk, 2).await;
    assert_eq!(dirs(&desk).len(), 3);
}
