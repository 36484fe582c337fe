//! `make bench`: each bar beside its reference in one run, as a table and as JSON.
//!
//! A program and not a test: figures depend on the machine, ratios hardly. The references are built
//! from the same arguments, the same users and the same bytes, and are timed between our own runs.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should say where")]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(clippy::wildcard_enum_match_arm, reason = "frames that do not matter here")]
#![allow(unreachable_pub, reason = "pub says what a module offers to the others")]

mod desk;
mod limits;
mod neighbour;
mod raw;
mod report;
mod shipped;
mod timing;

use std::time::{Duration, Instant};

use serde_json::json;

use desk::{Desk, median, p99, pss_kib};
use report::Bar;

const STARTS: usize = 60;
const CROWD: usize = 200;
const CROWD_ROUNDS: usize = 5;
const DECLARED: usize = 10_000;
const CONSOLE_BYTES: usize = 1 << 30;

#[tokio::main]
async fn main() {
    // Cargo passes --bench; a word after it picks bars by their name.
    let picked: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted =
        |name: &str| picked.is_empty() || picked.iter().any(|word| name.contains(word.as_str()));
    let mut bars = Vec::new();
    if wanted("shipped") {
        bars.extend(shipped::bars().await);
    }
    if wanted("start") {
        bars.push(start_to_first_byte().await);
    }
    if wanted("gvisor") {
        bars.push(gvisor_to_first_byte().await);
        bars.push(claim_to_first_byte().await);
    }
    if wanted("crowd") {
        bars.extend(crowd().await);
    }
    if wanted("declared") {
        bars.extend(declared().await);
    }
    if wanted("limits") {
        bars.extend(limits::bars().await);
    }
    if wanted("neighbour") {
        bars.extend(neighbour::bars().await);
    }
    if wanted("console") {
        // As much is kept as is printed, so that no byte is a gap; from the second round on its pages are reused.
        bars.extend(console(Desk::prepared(json!({"console_mb": CONSOLE_BYTES >> 20}))).await);
    }
    report::print(&bars);
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// REST start to the first byte on an open console, against bwrap with the same arguments.
async fn start_to_first_byte() -> Bar {
    let desk = Desk::new(json!({})).await;
    let bwrap = raw::Bwrap::new(desk.dir.path(), &["echo", "hi"]);
    let what = "REST start to first output byte, bubblewrap";
    first_bytes(desk, "bubblewrap", STARTS, || bwrap.first_byte(), (what, "<= 1.4 x", 1.4)).await
}

/// The same under gVisor, against runsc with the same bundle.
async fn gvisor_to_first_byte() -> Bar {
    let program =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports");
    let desk = Desk::new(json!({"gvisor": {"program": program, "platform": "systrap"}})).await;
    let runsc = raw::Gvisor::new(&program, desk.run.path(), &["echo", "hi"]);
    // Until the platform was tried.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let what = "REST start to first output byte, gVisor";
    first_bytes(desk, "gvisor", STARTS / 2, || runsc.first_byte(), (what, "<= 1.3 x", 1.3)).await
}

/// The same with sandboxes started ahead, against the same.
async fn claim_to_first_byte() -> Bar {
    let program =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports");
    let mut desk = Desk::prepared(json!({"gvisor": {"program": program, "platform": "systrap"}}));
    desk.add_image(
        &json!({"id": "ready", "name": "", "runtime": "bash", "startup": "true", "warm": 2}),
    );
    desk.start().await;
    let runsc = raw::Gvisor::new(&program, desk.run.path(), &["echo", "hi"]);
    let what = "the same, with sandboxes started ahead (warm: 2)";
    first_bytes(desk, "gvisor", STARTS / 2, || runsc.first_byte(), (what, "<= 0.5 x", 0.5)).await
}

async fn first_bytes(
    mut desk: Desk,
    isolation: &str,
    starts: usize,
    raw: impl Fn() -> Duration,
    (what, bar, ratio_max): (&'static str, &'static str, f64),
) -> Bar {
    let mut spec = json!({"command": ["echo", "hi"], "state": "stopped", "isolation": isolation,
        "restart": {"policy": "never"}});
    if desk.has_images() {
        spec["image"] = json!("ready");
    }
    desk.put("echo", &spec).await;
    let mut console = desk.console("echo").await;
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for round in 0..starts {
        desk.wait_ready().await;
        let first = desk.first_byte("echo", &mut console).await;
        desk.wait_ready().await;
        let raw = raw();
        // The first of each warms caches.
        if round > 0 {
            ours.push(ms(first));
            reference.push(ms(raw));
        }
        // As users would: with pauses, in which the kernel's grace periods end.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let ratio = median(&ours) / median(&reference);
    desk.stop().await;
    Bar {
        what,
        ours: format!("{:.1} ms (p99 {:.1})", median(&ours), p99(&ours)),
        reference: format!("{:.1} ms (p99 {:.1})", median(&reference), p99(&reference)),
        bar,
        met: ratio <= ratio_max,
        figures: json!({"median_ms": median(&ours), "p99_ms": p99(&ours),
            "reference_median_ms": median(&reference), "reference_p99_ms": p99(&reference), "ratio": ratio}),
    }
}

/// Two hundred at once: time, memory, and adoption after `kill -9`.
async fn crowd() -> Vec<Bar> {
    let mut desk = Desk::new(json!({})).await;
    let empty = pss_kib(desk.pid()).unwrap();
    let script = "echo up; sleep 1000";
    for index in 0..CROWD {
        let spec = json!({"command": ["bash", "-c", script], "state": "stopped",
            "limits": {"timeout_seconds": 0}});
        desk.put(&format!("s{index}"), &spec).await;
    }
    let bwrap = raw::Bwrap::new(desk.dir.path(), &["bash", "-c", script]);
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for round in 0..CROWD_ROUNDS {
        if round > 0 {
            desk.power_all("stop?wait=60s", CROWD).await;
        }
        reference.push(bwrap.crowd(CROWD).as_secs_f64());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let since = desk.last_event().await;
        let began = Instant::now();
        desk.power_all("start", CROWD).await;
        desk.wait_started(since, CROWD).await;
        ours.push(began.elapsed().as_secs_f64());
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    let shims = desk.shim_pids();
    let shim_kib: f64 =
        shims.iter().map(|pid| pss_kib(*pid).unwrap()).sum::<f64>() / shims.len() as f64;
    let daemon_kib = (pss_kib(desk.pid()).unwrap() - empty).max(0.0) / CROWD as f64;
    let (answered, adopted) = desk.adoption(CROWD).await;
    desk.delete_all(CROWD).await;
    desk.stop().await;
    let (rounds, ours, reference) =
        (json!({"s": ours, "reference_s": reference}), median(&ours), median(&reference));
    let ratio = ours / reference;
    let per = (shim_kib + daemon_kib) / 1024.0;
    vec![
        Bar {
            what: "daemon at rest, no sandboxes (PSS)",
            ours: format!("{:.1} MiB", empty / 1024.0),
            reference: "75 MiB (the seed)".to_owned(),
            bar: "<= 12 MiB",
            met: empty / 1024.0 <= 12.0,
            figures: json!({"pss_mib": empty / 1024.0}),
        },
        Bar {
            what: "start 200 sandboxes",
            ours: format!("{ours:.2} s"),
            reference: format!("{reference:.2} s"),
            bar: "<= 1.5 x",
            met: ratio <= 1.5,
            figures: json!({"s": ours, "reference_s": reference, "ratio": ratio, "rounds": rounds}),
        },
        Bar {
            what: "per running sandbox beside the runtime (PSS)",
            ours: format!("{per:.2} MiB"),
            reference: format!("shim {:.2} MiB", shim_kib / 1024.0),
            bar: "<= 0.35 MiB",
            met: per <= 0.35,
            figures: json!({"mib": per, "shim_mib": shim_kib / 1024.0, "daemon_mib": daemon_kib / 1024.0}),
        },
        Bar {
            what: "kill -9, restart: API answers",
            ours: format!("{:.0} ms", ms(answered)),
            reference: "-".to_owned(),
            bar: "<= 300 ms",
            met: ms(answered) <= 300.0,
            figures: json!({"ms": ms(answered)}),
        },
        Bar {
            what: "kill -9, restart: 200 sandboxes adopted",
            ours: format!("{:.2} s", adopted.as_secs_f64()),
            reference: "-".to_owned(),
            bar: "<= 2 s",
            met: adopted.as_secs_f64() <= 2.0,
            figures: json!({"s": adopted.as_secs_f64()}),
        },
    ]
}

/// Ten thousand declared and stopped: memory, cpu, and one edit among them against one among ten.
async fn declared() -> Vec<Bar> {
    let few = edits(10).await;
    let mut desk = Desk::prepared(json!({}));
    desk.declare(DECLARED);
    desk.start().await;
    desk.wait_declared(DECLARED).await;
    let ours = desk.edits(20).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    let memory = pss_kib(desk.pid()).unwrap() / 1024.0;
    let cpu = desk.cpu_percent().await;
    desk.stop().await;
    vec![
        Bar {
            what: "daemon with 10,000 declared, stopped (PSS)",
            ours: format!("{memory:.1} MiB"),
            reference: "-".to_owned(),
            bar: "<= 60 MiB",
            met: memory <= 60.0,
            figures: json!({"pss_mib": memory}),
        },
        Bar {
            what: "its cpu at rest",
            ours: format!("{cpu:.2} %"),
            reference: "-".to_owned(),
            bar: "0 %",
            met: cpu < 0.05,
            figures: json!({"percent": cpu}),
        },
        Bar {
            what: "one edit among 10,000: saved to step begun",
            ours: format!("{:.0} ms (p99 {:.0})", median(&ours), p99(&ours)),
            reference: format!("among 10: {:.0} ms", median(&few)),
            bar: "<= 200 ms",
            met: median(&ours) <= 200.0,
            figures: json!({"median_ms": median(&ours), "p99_ms": p99(&ours),
                "among_ten_median_ms": median(&few), "ratio": median(&ours) / median(&few)}),
        },
    ]
}

async fn edits(count: usize) -> Vec<f64> {
    let mut desk = Desk::prepared(json!({}));
    desk.declare(count);
    desk.start().await;
    desk.wait_declared(count).await;
    let times = desk.edits(10).await;
    desk.stop().await;
    times
}

/// One sandbox to one WebSocket, against a bare copy from a pipe to TCP.
async fn console(mut desk: Desk) -> Vec<Bar> {
    let line = "x".repeat(63);
    let script = format!("yes {line} | head -c {CONSOLE_BYTES}");
    desk.start().await;
    let spec = json!({"command": ["bash", "-c", script], "state": "stopped",
        "restart": {"policy": "never"}, "limits": {"timeout_seconds": 0, "cpu_percent": 0, "output": 0, "disk_mb": 0}});
    desk.put("loud", &spec).await;
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..6 {
        let bare = raw::pipe_to_tcp(&script, CONSOLE_BYTES);
        let binary = desk.throughput("loud", "binary", CONSOLE_BYTES).await;
        let json = desk.throughput("loud", "json", CONSOLE_BYTES).await;
        // The first warms caches.
        if round > 0 {
            for (rates, rate) in rates.iter_mut().zip([bare, binary, json]) {
                rates.push(rate);
            }
        }
    }
    desk.stop().await;
    let [bare, binary, json_rate] = rates.map(|rates| median(&rates));
    vec![
        Bar {
            what: "console, binary frames",
            ours: format!("{binary:.0} MiB/s"),
            reference: format!("{bare:.0} MiB/s"),
            bar: ">= 0.6 x",
            met: binary >= 0.6 * bare,
            figures: json!({"mib_s": binary, "reference_mib_s": bare, "ratio": binary / bare}),
        },
        Bar {
            what: "console, JSON frames",
            ours: format!("{json_rate:.0} MiB/s"),
            reference: "160 MiB/s (the seed)".to_owned(),
            bar: ">= 400 MiB/s",
            met: json_rate >= 400.0,
            figures: json!({"mib_s": json_rate}),
        },
    ]
}
