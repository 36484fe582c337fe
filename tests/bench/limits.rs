//! What limits cost: a start with all of them, volumes, what is read while nothing happens, and the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use sodium_model::DiskRules;
use sodium_model::disk::DiskChoice;
use sodium_runtime::storage::volume::unmount_all;
use sodium_runtime::storage::workspace::{Wanted, Workspaces};

use super::report::Bar;
use super::{Desk, median, ms, p99};

const STARTS: usize = 60;
const VOLUMES: usize = 200;
const VOLUME_BYTES: u64 = 64 << 20;
const RUNNING: usize = 1_000;
const IDLE_SECONDS: u64 = 30;

pub async fn bars() -> Vec<Bar> {
    let mut bars = vec![start_with_all().await];
    bars.extend(volumes());
    bars.extend(crowd_at_rest().await);
    bars
}

/// The same sandbox with every limit and with none, in turns. Its volume is there from its first start on.
async fn start_with_all() -> Bar {
    let mut desk = Desk::new(json!({"disk": {"mechanism": "image"}})).await;
    let limits = |on: u64| {
        json!({"memory_mb": 256 * on, "cpu_percent": 100 * on, "disk_mb": 64 * on, "timeout_seconds": 300 * on,
            "max_processes": 64 * on, "max_files": 1024 * on})
    };
    for (name, on) in [("bare", 0), ("limited", 1)] {
        let spec = json!({"command": ["echo", "hi"], "state": "stopped", "limits": limits(on),
            "restart": {"policy": "never"}});
        desk.put(name, &spec).await;
    }
    let mut consoles = [desk.console("bare").await, desk.console("limited").await];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..STARTS {
        for (which, name) in ["bare", "limited"].into_iter().enumerate() {
            let took = desk.first_byte(name, &mut consoles[which]).await;
            if round > 1 {
                times[which].push(ms(took));
            }
        }
    }
    desk.stop().await;
    let [bare, limited] = &times;
    let more = median(limited) - median(bare);
    Bar {
        what: "REST start to first output byte, with all limits",
        ours: format!("{:.1} ms (p99 {:.1})", median(limited), p99(limited)),
        reference: format!("without: {:.1} ms (p99 {:.1})", median(bare), p99(bare)),
        bar: "<= 3 ms more",
        met: more <= 3.0,
        figures: json!({"median_ms": median(limited), "reference_median_ms": median(bare), "more_ms": more}),
    }
}

/// Two hundred images: made, found again, and removed.
fn volumes() -> Vec<Bar> {
    let dir = tempfile::Builder::new().prefix("sodium-bench-").tempdir().unwrap();
    let rules = DiskRules { mechanism: DiskChoice::Image, reserve_mb: 0 };
    let spaces = Workspaces::open(&dir.path().join("sandboxes"), true, &rules).unwrap();
    let uids: Vec<uuid::Uuid> = (0..VOLUMES).map(|_| uuid::Uuid::now_v7()).collect();
    let none = BTreeMap::new();
    let mut rounds = [Vec::new(), Vec::new()];
    for times in &mut rounds {
        for (uid, host_uid) in uids.iter().zip(400_000..) {
            let wanted = Wanted {
                uid: *uid,
                host_uid,
                bytes: Some(VOLUME_BYTES),
                ephemeral: false,
                image_files: &none,
                files: &none,
            };
            let began = Instant::now();
            spaces.prepare(&wanted).unwrap();
            times.push(ms(began.elapsed()));
        }
    }
    let began = Instant::now();
    for uid in &uids {
        spaces.remove(*uid).unwrap();
    }
    let removed = ms(began.elapsed()) / VOLUMES as f64;
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let left = mounts.lines().filter(|line| line.contains(&*dir.path().to_string_lossy())).count();
    unmount_all(&dir.path().join("sandboxes"));
    let [made, again] = rounds;
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
    vec![
        Bar {
            what: "200 sandboxes with images: each, at creation",
            ours: format!("{:.1} ms (p99 {:.1})", mean(&made), p99(&made)),
            reference: format!("removed in {removed:.1} ms, {left} mounts left"),
            bar: "<= 40 ms",
            met: mean(&made) <= 40.0 && left == 0,
            figures: json!({"mean_ms": mean(&made), "p99_ms": p99(&made), "removed_ms": removed, "left": left}),
        },
        Bar {
            what: "the same at later starts",
            ours: format!("{:.2} ms", mean(&again)),
            reference: "-".to_owned(),
            bar: "nothing (<= 1 ms)",
            met: mean(&again) <= 1.0,
            figures: json!({"mean_ms": mean(&again)}),
        },
    ]
}

/// A thousand that run and do nothing.
async fn crowd_at_rest() -> Vec<Bar> {
    let mut desk = Desk::new(json!({"isolation": "process"})).await;
    for index in 0..RUNNING {
        let spec = json!({"command": ["sleep", "100000"], "limits": {"timeout_seconds": 0}});
        desk.put(&format!("s{index}"), &spec).await;
    }
    let all = format!("sodiumd_sandboxes{{phase=\"Running\"}} {RUNNING}\n");
    while !desk.metrics().await.contains(&all) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Until each has been seen to do nothing often enough.
    tokio::time::sleep(Duration::from_secs(90)).await;
    let before = desk.cpu_ticks();
    tokio::time::sleep(Duration::from_secs(IDLE_SECONDS)).await;
    let busy_ms = (desk.cpu_ticks() - before) as f64 * 10.0 / IDLE_SECONDS as f64;
    let mut times = Vec::new();
    for round in 0..21 {
        let began = Instant::now();
        let page = desk.metrics().await;
        assert!(page.matches("sodiumd_sandbox_memory_bytes{").count() == RUNNING);
        if round > 0 {
            times.push(ms(began.elapsed()));
        }
    }
    desk.delete_all(RUNNING).await;
    desk.stop().await;
    vec![
        Bar {
            what: "/metrics with 1,000 running",
            ours: format!("{:.0} ms (p99 {:.0})", median(&times), p99(&times)),
            reference: "-".to_owned(),
            bar: "<= 50 ms",
            met: median(&times) <= 50.0,
            figures: json!({"median_ms": median(&times), "p99_ms": p99(&times)}),
        },
        Bar {
            what: "daemon's cpu with 1,000 running that do nothing",
            ours: format!("{busy_ms:.1} ms a second"),
            reference: format!("{:.1} us each", busy_ms * 1000.0 / RUNNING as f64),
            bar: "nothing (<= 10 us each)",
            met: busy_ms * 1000.0 / RUNNING as f64 <= 10.0,
            figures: json!({"ms_per_s": busy_ms}),
        },
    ]
}
