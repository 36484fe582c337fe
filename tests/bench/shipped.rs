//! What somebody gets who does what README says: the shipped config.json on this machine's own disks, over the contract of
//! panels, against the plainest bwrap and runsc that one would type. The other bars say where the time goes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::desk::{Desk, TOKEN, median, p99};
use crate::report::Bar;
use crate::{CROWD, CROWD_ROUNDS, DECLARED, ms, raw};

const STARTS: usize = 60;
const EXECS: usize = 300;
const EXECS_AT_ONCE: usize = 16;

/// As soon as it is found: a run takes minutes.
fn found(bars: Vec<Bar>) -> Vec<Bar> {
    for bar in &bars {
        println!("{}: {}, beside {}", bar.what, bar.ours, bar.reference);
    }
    bars
}

pub async fn bars() -> Vec<Bar> {
    let bwrap = raw::Bwrap::plain(&["echo", "hi"]);
    let plain = || bwrap.first_byte();
    let mut bars =
        found(starts("bubblewrap", STARTS, plain, ("as shipped, bubblewrap", 1.4)).await);
    let (_place, runsc) = plain_runsc(&["echo", "hi"]);
    let plain = || runsc.first_byte();
    bars.extend(found(starts("gvisor", STARTS / 2, plain, ("as shipped, gVisor", 1.3)).await));
    bars.extend(found(vec![calls().await]));
    bars.extend(found(vec![crowd().await]));
    bars.extend(found(execs().await));
    bars.extend(found(crate::console(Desk::shipped()).await));
    bars.extend(found(vec![rest().await]));
    bars
}

/// runsc as root types it, where its processes may walk.
fn plain_runsc(command: &[&str]) -> (tempfile::TempDir, raw::Gvisor) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports");
    let place = tempfile::tempdir_in("/run").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(place.path(), mode).unwrap();
    let runsc = raw::Gvisor::new(&program, place.path(), command);
    (place, runsc)
}

impl Desk {
    /// With the configuration that is shipped, in places of its own.
    fn shipped() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut desk = Self::prepared(json!({}));
        // What /run is on this machine, and nothing better.
        desk.run = tempfile::Builder::new().prefix("sodium-bench-").tempdir_in("/run").unwrap();
        let own: Value =
            serde_json::from_slice(&fs::read(desk.path("config.json")).unwrap()).unwrap();
        let shipped = fs::read(here.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&shipped).unwrap();
        for key in ["port", "token", "uids"] {
            config[key] = own[key].clone();
        }
        config["run_path"] = json!(desk.run.path());
        config["images_path"] = json!(here.join("images"));
        config["gvisor"]["program"] = json!(here.join("target/runsc/bookworm-backports"));
        fs::write(desk.path("config.json"), config.to_string()).unwrap();
        desk
    }
}

/// One sandbox, started again and again with a command in the start, which edits its spec.
async fn starts(
    isolation: &str,
    count: usize,
    plain: impl Fn() -> Duration,
    (what, ratio_max): (&'static str, f64),
) -> Vec<Bar> {
    let mut desk = Desk::shipped();
    desk.start().await;
    let body = json!({"runtime": "bash", "isolation": isolation}).to_string();
    let made = desk.http.post(desk.url("/sandboxes")).bearer_auth(TOKEN).body(body);
    let made: Value = made.send().await.unwrap().json().await.unwrap();
    let id = made["data"]["uuid"].as_str().unwrap().to_owned();
    let url = format!("ws://127.0.0.1:{}/console/{id}?token={TOKEN}", desk.port);
    let mut console = tokio_tungstenite::connect_async(url).await.unwrap().0;
    // Until the platform was tried.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mut firsts, mut replies, mut reference) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..count {
        let word = format!("hi {round}");
        let began = Instant::now();
        let body = json!({"command": "echo", "args": [word]}).to_string();
        let url = desk.url(&format!("/sandboxes/{id}/start"));
        let asked = async {
            let sent = desk.http.post(url).bearer_auth(TOKEN).body(body).send().await.unwrap();
            assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
            began.elapsed()
        };
        let first = async {
            loop {
                let Message::Text(text) = console.next().await.unwrap().unwrap() else { continue };
                if text.contains("\"output\"") && text.contains(&word) {
                    return began.elapsed();
                }
            }
        };
        let (reply, first) = tokio::join!(asked, first);
        desk.wait_stopped(&id).await;
        let plain = plain();
        // The first of each warms caches.
        if round > 0 {
            firsts.push(ms(first));
            replies.push(ms(reply) - ms(first));
            reference.push(ms(plain));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    desk.delete(&id).await;
    desk.stop().await;
    let ratio = median(&firsts) / median(&reference);
    let late = median(&replies);
    vec![
        Bar {
            what,
            ours: format!("{:.1} ms (p99 {:.1})", median(&firsts), p99(&firsts)),
            reference: format!("{:.1} ms (p99 {:.1})", median(&reference), p99(&reference)),
            bar: if ratio_max > 1.35 { "<= 1.4 x" } else { "<= 1.3 x" },
            met: ratio <= ratio_max,
            figures: json!({"median_ms": median(&firsts), "p99_ms": p99(&firsts),
                "reference_median_ms": median(&reference), "ratio": ratio}),
        },
        Bar {
            what: "its reply, after the first byte",
            ours: format!("{late:+.1} ms"),
            reference: "-".to_owned(),
            bar: "<= 1 ms",
            met: late <= 1.0,
            figures: json!({"median_ms": late}),
        },
    ]
}

/// Two hundred at once, as panels start them.
async fn crowd() -> Bar {
    let mut desk = Desk::shipped();
    desk.start().await;
    let script = "echo up; sleep 1000";
    for index in 0..CROWD {
        let spec = json!({"command": ["bash", "-c", script], "state": "stopped"});
        desk.put(&format!("s{index}"), &spec).await;
    }
    let bwrap = raw::Bwrap::plain(&["bash", "-c", script]);
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
        // The first makes their disks.
        if round > 0 {
            ours.push(began.elapsed().as_secs_f64());
        }
    }
    desk.delete_all(CROWD).await;
    desk.stop().await;
    let (ours, reference) = (median(&ours), median(&reference));
    let ratio = ours / reference;
    Bar {
        what: "as shipped, start 200 sandboxes",
        ours: format!("{ours:.2} s"),
        reference: format!("{reference:.2} s"),
        bar: "<= 1.5 x",
        met: ratio <= 1.5,
        figures: json!({"s": ours, "reference_s": reference, "ratio": ratio}),
    }
}

/// One program after another in what runs, and sixteen at once, against `nsenter` typed by root.
async fn execs() -> Vec<Bar> {
    let mut desk = Desk::shipped();
    desk.start().await;
    let spec = json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}});
    desk.put("web", &spec).await;
    let pid = desk.wait_running("web").await;
    let (mut ours, mut reference, mut crowded, mut crowded_raw) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..EXECS {
        let (took, raw) = (desk.exec("web").await, raw::nsenter(pid));
        if round > 0 {
            ours.push(ms(took));
            reference.push(ms(raw));
        }
    }
    for _ in 0..EXECS / EXECS_AT_ONCE {
        let all = (0..EXECS_AT_ONCE).map(|_| desk.exec("web"));
        crowded.extend(futures_util::future::join_all(all).await.into_iter().map(ms));
        let all: Vec<_> =
            (0..EXECS_AT_ONCE).map(|_| std::thread::spawn(move || raw::nsenter(pid))).collect();
        crowded_raw.extend(all.into_iter().map(|one| ms(one.join().unwrap())));
    }
    desk.delete("web").await;
    desk.stop().await;
    let bar = |what, bar, (p50_max, p99_max): (f64, f64), ours: &[f64], raw: &[f64]| Bar {
        what,
        ours: format!("{:.1} ms (p99 {:.1})", median(ours), p99(ours)),
        reference: format!("{:.1} ms (p99 {:.1})", median(raw), p99(raw)),
        bar,
        met: median(ours) <= p50_max && p99(ours) <= p99_max,
        figures: json!({"median_ms": median(ours), "p99_ms": p99(ours), "reference_median_ms": median(raw),
            "reference_p99_ms": p99(raw)}),
    };
    vec![
        bar("exec over the API, bubblewrap", "<= 2.5, p99 3.4 ms", (2.5, 3.4), &ours, &reference),
        bar("the same, 16 at once", "<= 17, p99 29 ms", (17.0, 29.0), &crowded, &crowded_raw),
    ]
}

impl Desk {
    /// The process of what runs, as the host counts.
    async fn wait_running(&self, name: &str) -> u64 {
        loop {
            let sandbox = self.get(&format!("/v1/sandboxes/{name}")).await;
            if sandbox["status"]["phase"] == "Running"
                && let Some(pid) = sandbox["status"]["instance"]["pid"].as_u64()
            {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn exec(&self, name: &str) -> Duration {
        let began = Instant::now();
        let ended =
            self.post_owned(format!("/v1/sandboxes/{name}/exec"), r#"{"command": ["true"]}"#).await;
        assert_eq!(ended["code"], 0, "{ended}");
        began.elapsed()
    }
}

/// What ten thousand cost that are declared and stopped, while nothing happens.
async fn rest() -> Bar {
    let mut desk = Desk::shipped();
    desk.declare(DECLARED);
    desk.start().await;
    desk.wait_declared(DECLARED).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    let cpu = desk.cpu_percent().await;
    desk.stop().await;
    Bar {
        what: "as shipped, cpu at rest with 10,000 declared",
        ours: format!("{cpu:.2} %"),
        reference: "-".to_owned(),
        bar: "0 %",
        met: cpu < 0.05,
        figures: json!({"percent": cpu}),
    }
}

/// Prints what a system call takes, in microseconds.
const CALLS: &str = "import os, time
began = time.perf_counter()
for _ in range(50000): os.stat('/')
print((time.perf_counter() - began) / 50000 * 1e6)";

/// System calls of a guest with the limits that are shipped, against one of no cgroup.
async fn calls() -> Bar {
    let (_place, raw) = plain_runsc(&["python3", "-c", CALLS]);
    let mut desk = Desk::shipped();
    desk.start().await;
    let spec = json!({"isolation": "gvisor", "command": ["sleep", "1000"]});
    desk.put("web", &spec).await;
    desk.wait_running("web").await;
    let body: &'static str = json!({"command": ["python3", "-c", CALLS]}).to_string().leak();
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let ended = desk.post_owned("/v1/sandboxes/web/exec".to_owned(), body).await;
        ours.push(ended["stdout"].as_str().unwrap().trim().parse::<f64>().unwrap());
        reference.push(raw.output().trim().parse::<f64>().unwrap());
    }
    desk.delete("web").await;
    desk.stop().await;
    let (ours, reference) = (median(&ours), median(&reference));
    Bar {
        what: "as shipped, a system call under gVisor (stat)",
        ours: format!("{ours:.1} us"),
        reference: format!("{reference:.1} us"),
        bar: "<= 2 x",
        met: ours <= 2.0 * reference,
        figures: json!({"us": ours, "reference_us": reference, "ratio": ours / reference}),
    }
}
