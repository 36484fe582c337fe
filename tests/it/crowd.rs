//! Two hundred gVisor sandboxes at once, and what every limit is worth, in a binary of their own: they leave the
//! machine to nobody else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects; the rest fails")]
#![allow(unreachable_pub, reason = "pub says what a test module offers to the others")]
#![allow(dead_code, reason = "the other binary uses all of the desk")]

mod contract;
mod desk;
mod disk;
mod prove;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use desk::{Desk, PATIENCE, is_frozen};
use serde_json::{Value, json};

/// Where the API of the daemons under test writes.
pub const STORE: &str = "sqlite";

/// One test after the other: what is measured is the machine's, and each daemon gives its sandboxes the same users.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

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
    let _alone = ALONE.lock().await;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports");
    let mut desk = Desk::with(json!({"gvisor": {"program": program, "idle_freeze": "1s"}})).await;
    let names: Vec<String> = (0..CROWD).map(|n| format!("web-{n:03}")).collect();
    for name in &names {
        let spec = json!({"isolation": "gvisor", "command": ["sleep", "100000"],
            "limits": {"memory_mb": 64, "cpu_percent": 50}});
        desk.write_spec(&format!("{name}.yaml"), name, &spec);
    }
    let deadline = Instant::now() + 12 * PATIENCE;
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
    let deadline = Instant::now() + 12 * PATIENCE;
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
