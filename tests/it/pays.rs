//! What is done for a sandbox is charged to it: its shim, and whoever runs an exec in it.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE};

/// Of every process below this daemon's groups: its group, and its program.
fn grouped(desk: &Desk) -> Vec<(String, String, u32)> {
    let groups =
        sodium_runtime::supervise::host::cgroups_of(&desk.path("run").canonicalize().unwrap());
    let above = groups.family("any").workload.unified.expect("this host has version 2");
    let above = above.ancestors().nth(2).unwrap();
    let name = above.file_name().unwrap().to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        // Where it is counted, it is in the same group everywhere.
        let counted = ["0::", ":memory:", ":cpu:", ":pids:"];
        let mut own: Vec<&str> = groups
            .lines()
            .filter(|line| line.contains(name) && counted.iter().any(|one| line.contains(one)))
            .filter_map(|line| line.rsplit_once('/').map(|(_, group)| group))
            .collect();
        own.sort_unstable();
        own.dedup();
        (!own.is_empty()).then(|| (own.join(" and "), comm.trim().to_owned(), pid))
    })
    .collect()
}

async fn wait_grouped(desk: &Desk, what: &str, done: impl Fn(&[(String, String, u32)]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = grouped(desk);
        if done(&found) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn put(desk: &Desk, spec: &Value) {
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": "a"}, "spec": spec});
    let answer = desk.ask("PUT", "/v1/sandboxes/a", &document.to_string()).await;
    assert!(answer.status < 300, "{answer:?}");
}

fn count(found: &[(String, String, u32)], group: &str, comm: &str) -> usize {
    found.iter().filter(|one| one.0 == group && one.1.starts_with(comm)).count()
}

async fn helpers_are_counted(isolation: &str, extra: Value) {
    let desk = Desk::with(extra).await;
    put(&desk, &json!({"isolation": isolation, "command": ["sleep", "1000"]})).await;
    desk.wait_phase("a", "Running").await;
    wait_grouped(&desk, "its shim is among its helpers", |found| {
        count(found, "helpers", "sodium-shim") == 1
    })
    .await;
    let order = json!({"command": ["sleep", "5"]}).to_string();
    let exec = desk.ask("POST", "/v1/sandboxes/a/exec", &order);
    let helper = wait_grouped(&desk, "the exec's helper, too", |found| {
        let all = found.iter().filter(|one| one.0 == "helpers").count();
        // gVisor's is helped by a runsc, too, whatever that calls itself.
        count(found, "helpers", "sodium-shim") == 2 && (all > 2) == (isolation == "gvisor")
    });
    let (answer, ()) = tokio::join!(exec, helper);
    assert_eq!(answer.json["code"], 0, "{answer:?}");
    // And nobody else's is: whatever runs in the sandbox is in the workload.
    let found = grouped(&desk);
    assert!(found.iter().any(|one| one.0 == "workload"), "{found:?}");
    assert_eq!(desk.ask("DELETE", "/v1/sandboxes/a?wait=20s", "").await.status, 200);
    wait_grouped(&desk, "nothing is left", <[_]>::is_empty).await;
}

#[tokio::test]
async fn what_helps_a_process_is_charged_to_it() {
    helpers_are_counted("process", json!({})).await;
}

#[tokio::test]
async fn what_helps_bubblewrap_is_charged_to_it() {
    helpers_are_counted("bubblewrap", json!({})).await;
}

#[tokio::test]
async fn what_helps_gvisor_is_charged_to_it() {
    let program =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports");
    helpers_are_counted("gvisor", json!({"gvisor": {"program": program}})).await;
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split(' ').collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    number(12) + number(13)
}

/// Its console kept a shim busy with a third of a cpu, whatever the sandbox's own limit was.
#[tokio::test]
async fn who_prints_all_it_can_pays_for_its_console() {
    let desk = Desk::new().await;
    let limits = json!({"cpu_percent": 10, "output": 0, "timeout_seconds": 0});
    put(&desk, &json!({"isolation": "process", "command": ["yes"], "limits": limits})).await;
    desk.wait_logs("a", "y").await;
    let all = |desk: &Desk| grouped(desk).iter().map(|one| cpu_ticks(one.2)).sum::<u64>();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (all(&desk), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = (all(&desk) - before) as f64 / began.elapsed().as_secs_f64();
    // Ticks are hundredths of a second. The limit, and what helpers may have beyond it; a tick is counted whole.
    assert!(used <= 24.0, "{used:.1} % of a cpu");
}

/// What is written to a terminal that nobody has open any more is waited with, not tried without end.
#[tokio::test]
async fn a_program_that_lets_go_of_its_terminal_keeps_nobody_busy() {
    use futures_util::SinkExt;
    use tokio_tungstenite::tungstenite::Message;
    let desk = Desk::new().await;
    put(&desk, &json!({"command": ["sleep", "1000"]})).await;
    desk.wait_phase("a", "Running").await;
    let token = crate::desk::TOKEN;
    let url = format!("ws://127.0.0.1:{}/v1/sandboxes/a/exec?token={token}", desk.port);
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let command = json!(["sh", "-c", "stty raw; exec sleep 1000 <&- >&- 2>&-"]);
    let first = json!({"command": command, "tty": true, "cols": 80, "rows": 24});
    socket.send(Message::Text(first.to_string().into())).await.unwrap();
    wait_grouped(&desk, "it has let go", |found| {
        found.iter().filter(|one| one.1 == "sleep").count() == 2
    })
    .await;
    socket.send(Message::Binary(vec![b'x'; 40_000].into())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let helpers = |desk: &Desk| {
        let all = grouped(desk).into_iter().filter(|one| one.0 == "helpers");
        all.map(|one| cpu_ticks(one.2)).sum::<u64>()
    };
    let before = helpers(&desk);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = helpers(&desk) - before;
    // It would be all of a cpu, or what helpers may have of one.
    assert!(used <= 4, "{used} ticks in two seconds");
}
