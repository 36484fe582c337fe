//! `make soak`: an hour's work in ten minutes, and whether the daemon is then what it was before.
//!
//! A program and not a test. All of this at once, for the whole time, by a seed; on two cores it leaves
//! more than half of them idle, so what is measured is the daemon and not the queue for a cpu:
//!
//! | what | how often |
//! |---|---|
//! | 10,000 specs in files, stopped | one edited each second, one added and one removed each five |
//! | 200 sandboxes that run | a line each second; a fifth of them 4 MiB at first and 32 KiB each five |
//! | 200 consoles over WebSocket, JSON and binary | a tenth is never read, a tenth leaves and returns |
//! | small reads, by two clients that wait for nothing else | 40 each second, all of them judged |
//! | the whole list (18 MB) and all events, by another client | each 30 seconds, in the way of the above |
//! | stop and start of a sandbox · put, run and delete of one | each two · each five seconds |
//! | followers: four watches, one of them from nothing each minute, four logs, the events | all the time |
//!
//! ```text
//!   start, declare, run -> load (probe.rs, load.rs) beside samples (gauge.rs) -> all stop -> 10 s idle -> left.rs
//! ```

#![allow(clippy::unwrap_used, reason = "a soak that cannot go on should say where")]
#![allow(clippy::print_stdout, reason = "printing is what it is for")]
#![allow(unreachable_pub, reason = "pub says what a module offers to the others")]

mod desk;
mod gauge;
mod left;
mod load;
mod probe;
mod report;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};

use desk::{Desk, median, p99};
use gauge::{Gauge, Window};
use load::{Scene, Tally};
use probe::Reads;
use report::Bar;

/// Declared in files, and stopped.
const DECLARED: usize = 10_000;
/// Running, each with a console that somebody is connected to.
const RUNNING: usize = 200;
/// Idle threads of the daemon end, and its rounds of the directory find nothing new any more.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(10);

const MEMORY_GROWTH_MAX: f64 = 1.05;
const READ_MS_MAX: f64 = 20.0;
const IDLE_TICKS_MAX: u64 = 1;
/// Connections that are sometimes there and sometimes not: 20 that leave and return and the unread ones
/// between two of theirs, each with its spool open, some requests, and the stops and starts on their way.
/// The median of a window moves by a part of them; a leak of one descriptor in a minute passes it, one in
/// each stop, start or reconnection does not.
const FDS_SLACK: f64 = 10.0;

/// What is asked for by the environment.
struct Order {
    minutes: f64,
    seed: u64,
    isolation: String,
}

impl Order {
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            minutes: text("MINUTES").map_or(10.0, |text| text.parse().expect("MINUTES")),
            seed: text("SEED").map_or(1, |text| text.parse().expect("SEED")),
            isolation: text("ISOLATION").unwrap_or_else(|| "bubblewrap".to_owned()),
        }
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }
}

// One thread: the load is to cost little, and the judged reads have threads of their own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let order = Order::read();
    println!("{} minutes, seed {}, {}", order.minutes, order.seed, order.isolation);
    let mut desk =
        Desk::prepared(json!({"isolation": order.isolation, "disk": {"mechanism": "image"}}));
    for index in 0..DECLARED {
        let name = format!("s{index}");
        desk::save(&desk.path("desired"), &name, &load::declared(&name, index, 0));
    }
    desk.start().await;
    desk.wait_declared(DECLARED).await;
    let mut bars = under_load(&desk, &order).await;
    bars.extend(afterwards(&mut desk).await);
    report::print(&bars);
    if bars.iter().all(|bar| bar.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn under_load(desk: &Desk, order: &Order) -> Vec<Bar> {
    let scene = Arc::new(Scene::new(desk, order.seed));
    load::start_all(&scene, RUNNING).await;
    let mut tasks = load::begin(&scene, RUNNING);
    let probes = probe::begin(&scene, RUNNING);
    let gauge = Gauge::watch(desk, order.length()).await;
    scene.stop.cancel();
    while let Some(done) = tasks.join_next().await {
        done.expect("no part of the load panics");
    }
    let mut reads = Reads::default();
    for probe in probes {
        reads.add(probe.join().expect("no probe panics"));
    }
    let astray = load::astray(&scene, DECLARED + RUNNING).await;
    let mut bars = gauged(&gauge);
    bars.extend(read(&reads));
    bars.extend(tallied(&scene.tally, &astray));
    bars
}

fn gauged(gauge: &Gauge) -> Vec<Bar> {
    let mib = |window, of: fn(&gauge::Sample) -> f64| gauge.average(window, of) / 1024.0;
    let [third, last] = [Window::Third, Window::Last].map(|at| mib(at, |one| one.total_kib()));
    let daemon = [Window::Third, Window::Last].map(|at| mib(at, |one| one.daemon_kib));
    let fds = [Window::Third, Window::Last].map(|at| gauge.median(at, |one| one.fds));
    vec![
        Bar {
            what: "memory of daemon and shims, last tenth (PSS)",
            ours: format!("{last:.1} MiB"),
            reference: format!("third: {third:.1} MiB"),
            bar: "<= 1.05 x",
            met: last <= third * MEMORY_GROWTH_MAX,
            figures: json!({"mib": last, "third_mib": third, "ratio": last / third,
                "daemon_mib": daemon[1], "daemon_third_mib": daemon[0],
                "each_daemon_mib": gauge.each(|one| one.daemon_kib / 1024.0)}),
        },
        Bar {
            what: "its open descriptors, last tenth",
            ours: format!("{:.0}", fds[1]),
            reference: format!("third: {:.0}", fds[0]),
            bar: "<= third + 10",
            met: fds[1] <= fds[0] + FDS_SLACK,
            figures: json!({"count": fds[1], "third_count": fds[0], "each": gauge.each(|one| one.fds)}),
        },
        Bar {
            what: "its cpu under load",
            ours: format!("{:.1} %", gauge.daemon_cpu_percent),
            reference: format!("idle: {:.0} % of all", gauge.idle_percent),
            bar: "-",
            met: true,
            figures: json!({"percent": gauge.daemon_cpu_percent, "idle_percent": gauge.idle_percent}),
        },
    ]
}

fn read(reads: &Reads) -> Vec<Bar> {
    let all = reads.small();
    let worst = all.iter().copied().fold(0.0, f64::max);
    // The same clients, the same cpus, and no daemon: what it takes, the machine takes.
    let bare =
        reads.by_kind().find(|(what, _)| *what == probe::BARE).map_or(0.0, |(_, ms)| p99(ms));
    let kinds: Vec<Value> = reads
        .by_kind()
        .map(|(what, ms)| {
            json!({"what": what, "count": ms.len(), "median_ms": median(ms), "p99_ms": p99(ms)})
        })
        .collect();
    vec![Bar {
        what: "small reads, p99",
        ours: format!("{:.1} ms (median {:.1})", p99(&all), median(&all)),
        reference: format!("bare: {bare:.1} ms"),
        bar: "<= 20 ms",
        met: p99(&all) <= READ_MS_MAX,
        figures: json!({"count": all.len(), "median_ms": median(&all), "p99_ms": p99(&all),
            "max_ms": worst, "bare_p99_ms": bare, "kinds": kinds}),
    }]
}

fn tallied(tally: &Tally, astray: &[String]) -> Vec<Bar> {
    let failures = tally.failures();
    for text in failures.iter().chain(astray).take(20) {
        println!("wrong: {text}");
    }
    let (let_go, kept) = (Tally::read(&tally.let_go), Tally::read(&tally.kept));
    vec![
        Bar {
            what: "requests that failed, readers that were cut off",
            ours: format!("{}", failures.len()),
            reference: format!("{} changes", Tally::read(&tally.changes)),
            bar: "0",
            met: failures.is_empty(),
            figures: json!({"failures": failures, "changes": Tally::read(&tally.changes),
                "edits": Tally::read(&tally.edits), "returns": Tally::read(&tally.returns),
                "console_bytes": Tally::read(&tally.console_bytes),
                "lines_followed": Tally::read(&tally.lines_followed)}),
        },
        Bar {
            what: "clients that take nothing and were not let go",
            ours: format!("{kept}"),
            // A short run ends before a patience does.
            reference: format!("of {}", let_go + kept),
            bar: "0",
            met: kept == 0,
            figures: json!({"kept": kept, "let_go": let_go}),
        },
        Bar {
            what: "declared and not there, there and not declared",
            ours: format!("{}", astray.len()),
            reference: "-".to_owned(),
            bar: "0",
            met: astray.is_empty(),
            figures: json!({"astray": astray}),
        },
    ]
}

/// Everything stops, and nothing is to move or to stay.
async fn afterwards(desk: &mut Desk) -> Vec<Bar> {
    let processes = left::processes(desk);
    let names = (0..RUNNING).map(|index| format!("r{index}"));
    let stops = names.clone().map(|name| stop(desk, name));
    futures_util::stream::iter(stops).buffer_unordered(16).collect::<Vec<_>>().await;
    tokio::time::sleep(SETTLE).await;
    let before = desk.cpu_ticks();
    tokio::time::sleep(IDLE).await;
    let ticks = desk.cpu_ticks() - before;
    let at_rest = desk::pss_kib(desk.pid()).unwrap() / 1024.0;
    let deletes = names.map(|name| delete(desk, name));
    futures_util::stream::iter(deletes).buffer_unordered(16).collect::<Vec<_>>().await;
    let left = left::look(desk, &processes).await;
    for text in left.iter().take(20) {
        println!("left: {text}");
    }
    let log = fs::read_to_string(desk.path("log")).unwrap();
    let unexpected: Vec<&str> = log.lines().filter(|line| !is_greeting(line)).collect();
    for line in unexpected.iter().take(20) {
        println!("log: {line}");
    }
    vec![
        Bar {
            what: "its cpu in 10 s once all is stopped",
            ours: format!("{} ms", ticks * 10),
            reference: format!("{at_rest:.1} MiB"),
            bar: "<= 10 ms",
            met: ticks <= IDLE_TICKS_MAX,
            figures: json!({"ticks": ticks, "pss_mib": at_rest}),
        },
        Bar {
            what: "lines of warning or error in its log",
            ours: format!("{}", unexpected.len()),
            reference: "-".to_owned(),
            bar: "0",
            met: unexpected.is_empty(),
            figures: json!({"count": unexpected.len(), "first": unexpected.first()}),
        },
        Bar {
            what: "left behind",
            ours: format!("{}", left.len()),
            reference: format!("of {} processes", processes.len()),
            bar: "0",
            met: left.is_empty(),
            figures: json!({"left": left}),
        },
    ]
}

/// The daemon's own five lines for people. It logs warnings and errors only, and none of what is done to
/// it here is a reason for one, so everything else is unexpected, a panic's text too.
fn is_greeting(line: &str) -> bool {
    line.starts_with("sodiumd ") || line.starts_with("  ") && !line.contains("WARN")
}

async fn stop(desk: &Desk, name: String) {
    let url = desk.url(&format!("/v1/sandboxes/{name}/stop?wait=60s"));
    let sent = desk.http.post(url).bearer_auth(desk::TOKEN).body("{}").send().await.unwrap();
    assert!(sent.status().is_success(), "{name}: {}", sent.text().await.unwrap());
}

async fn delete(desk: &Desk, name: String) {
    let url = desk.url(&format!("/v1/sandboxes/{name}?wait=60s"));
    let sent = desk.http.delete(url).bearer_auth(desk::TOKEN).send().await.unwrap();
    assert!(sent.status().is_success(), "{name}: {}", sent.text().await.unwrap());
}
