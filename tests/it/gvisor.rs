//! gVisor from outside: its bundle as a file to compare with, and a daemon that runs it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sodium_model::{Limits, Network};
use sodium_runtime::gvisor::runsc::{Guest, Runsc};
use sodium_runtime::rootfs::Shown;
use sodium_shim::launch::RUNSC_STAGE;

use crate::desk::Desk;
use crate::golden;

/// The versions that Debian has; `make test` puts them there.
pub fn versions() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc");
    ["bookworm", "bookworm-backports"].map(|suite| dir.join(suite)).to_vec()
}

fn runsc() -> Runsc {
    Runsc {
        program: "/usr/bin/runsc".into(),
        version: "0.0".to_owned(),
        shown: Shown {
            top_level: vec![
                ("bin".to_owned(), Some("usr/bin".to_owned())),
                ("lib64".to_owned(), None),
            ],
            made: "/run/sodiumd/shown".into(),
        },
        found: "/run/sodiumd/shown".into(),
        root: "/run/sodiumd/shown/root".into(),
    }
}

#[test]
fn the_bundle_is_made_of_typed_fields_alone() {
    let command = ["sh", "-c", "id"].map(str::to_owned);
    let env = [("A".to_owned(), "b=c".to_owned())].into();
    let limits = Limits { max_processes: 16, max_files: 256, ..Limits::DEFAULT };
    let guest = Guest {
        hostname: "web",
        command: &command,
        env: &env,
        host_uid: 200_007,
        host_root: 1_000_200_007,
        tty: false,
        network: Network::None,
        limits: &limits,
        waits: false,
        has_tmp: false,
    };
    golden::compare("gvisor-bundle.json", &runsc().bundle(&guest));
    let unlimited = Limits { max_processes: 0, max_files: 0, ..limits };
    let open = Guest { tty: true, network: Network::Host, limits: &unlimited, ..guest };
    let bundle = runsc().bundle(&open);
    assert!(!bundle["linux"]["namespaces"].to_string().contains("network"));
    assert_eq!(bundle["process"]["terminal"], true);
    assert_eq!(bundle["process"]["rlimits"].as_array().unwrap().len(), 1, "no core, no others");
    assert!(bundle["mounts"].to_string().contains("/etc/hosts"));
    // On its stage, nothing leads through the run directory.
    let stage = Path::new(RUNSC_STAGE);
    let staged = Runsc { found: stage.into(), root: stage.join("root"), ..runsc() };
    let text = staged.bundle(&guest).to_string();
    assert!(!text.contains("/run/sodiumd") && text.contains("/sys/firmware/homes"), "{text}");
}

#[tokio::test]
async fn an_isolation_is_all_that_a_user_changes() {
    for program in versions() {
        let mut desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let script =
            "echo up; read line; echo got $line as $(cut -d: -f1 /etc/group | head -1); sleep 1000";
        let spec = json!({"isolation": "gvisor", "command": ["bash", "-c", script],
            "stop": {"signal": "SIGTERM", "grace": "5s"}, "limits": {"memory_mb": 128}});
        desk.write_spec("web.yaml", "web", &spec);
        let pid = desk.wait_phase("web", "Running").await["status"]["instance"]["pid"].clone();
        desk.wait_logs("web", "up").await;
        let health = desk.get("/health").await.json;
        let runtime = health["runtimes"]["gvisor"].as_str().unwrap().to_owned();
        assert!(
            runtime.starts_with("runsc 0.0~20") && runtime.ends_with("trap")
                || runtime.ends_with("ptrace"),
            "{health}"
        );
        // The daemon dies; the sandbox does not, and is adopted as it is.
        desk.kill();
        desk.start().await;
        let input = json!({"input": "hello\n"});
        while desk.post("/sandboxes/web/input", input.clone()).await.status != 200 {
            // Not adopted yet.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        // And finds its files, which the new daemon must leave as they are.
        desk.wait_logs("web", "got hello as container").await;
        let sandbox = desk.sandbox("web").await;
        assert_eq!(sandbox["status"]["instance"]["pid"], pid);
        assert_eq!(sandbox["status"]["instance"]["runtime"], json!(runtime));
        let limits = sandbox["status"]["limits"].to_string();
        assert!(limits.contains("RLIMIT_NPROC in the guest"), "{limits}");
        let stopped = desk.post("/v1/sandboxes/web/stop?wait=20s", json!({})).await;
        assert_eq!(stopped.status, 200, "{stopped:?}");
        let exit = desk.sandbox("web").await["status"]["last_exit"].clone();
        assert_eq!((&exit["kind"], &exit["signal"]), (&json!("signaled"), &json!("SIGTERM")));
    }
}

/// Sockets without a path that anybody in the host's network may connect to. One that gives orders to gVisor obeys
/// whoever does: in its user namespace every other user of the host looks like its own.
fn sockets_of_runsc() -> Vec<String> {
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    let names = all.lines().filter_map(|line| line.split_whitespace().nth(7));
    // Daemons of other tests may be finding out what works here, in which nobody's code runs.
    let is_ones = |name: &&str| name.starts_with("@runsc") && !name.contains("try-");
    names.filter(is_ones).map(str::to_owned).collect()
}

#[tokio::test]
async fn nobody_on_the_host_can_give_gvisor_orders() {
    for program in versions() {
        // What listens for other tests is not reached either.
        let network = json!({"enabled": true});
        let desk = Desk::with(json!({"gvisor": {"program": program}, "network": network})).await;
        let spec = json!({"isolation": "gvisor", "command": ["sleep", "1000"]});
        desk.write_spec("web.yaml", "web", &spec);
        desk.wait_phase("web", "Running").await;
        assert_eq!(sockets_of_runsc(), [""; 0]);
        // The one who may is still heard.
        let (code, out, said) = desk.cli(&["exec", "web", "--", "cat", "/proc/net/unix"]);
        assert_eq!(code, 0, "{out}{said}");
        let open = json!({"isolation": "gvisor", "command": ["sleep", "1000"], "network": "host"});
        desk.write_spec("open.yaml", "open", &open);
        let decided = |sandbox: &Value| {
            let status = sandbox["status"].to_string();
            status.contains("can give it orders") || sandbox["status"]["phase"] == "Running"
        };
        let found = desk.wait_for("open", "decided", decided).await;
        assert_eq!(sockets_of_runsc(), [""; 0]);
        let is_old = program.ends_with("bookworm");
        assert_eq!(found["status"]["phase"] == "Running", !is_old, "{found}");
    }
}

#[tokio::test]
async fn a_host_without_gvisor_says_so_and_runs_nothing_weaker() {
    let desk = Desk::new().await;
    let spec = json!({"isolation": "gvisor", "command": ["true"]});
    desk.write_spec("web.yaml", "web", &spec);
    let told = |sandbox: &Value| sandbox["status"].to_string().contains("runsc is not installed");
    desk.wait_for("web", "told", told).await;
    assert_eq!(desk.sandbox("web").await["status"]["instance"], Value::Null);
}

/// Processes of the sandbox whose first process this is: the sentry, the gofer, and stubs.
fn relatives(pid: u64) -> Vec<(u64, String)> {
    let read = |pid: u64, file: &str| std::fs::read(format!("/proc/{pid}/{file}"));
    let group = |pid: u64| {
        let text = String::from_utf8(read(pid, "cgroup").ok()?).ok()?;
        text.lines().find(|line| line.contains("sodiumd-")).map(str::to_owned)
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
        .filter(|other| group(*other).is_some() && group(*other) == group(pid))
        .filter_map(|other| Some((other, String::from_utf8(read(other, "cmdline").ok()?).ok()?)))
        .collect()
}

#[tokio::test]
async fn whichever_of_its_processes_is_killed_the_sandbox_ends_whole_and_starts_again() {
    for program in versions() {
        let desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let spec = json!({"isolation": "gvisor", "command": ["sleep", "1000"],
            "restart": {"policy": "always", "backoff": {"initial": "1s", "max": "1s"}}});
        desk.write_spec("web.yaml", "web", &spec);
        let mut before = Value::Null;
        for victim in ["runsc-sandbox", "runsc-gofer"] {
            let running = |sandbox: &Value| {
                let instance = &sandbox["status"]["instance"];
                sandbox["status"]["phase"] == "Running" && instance["iid"] != before
            };
            let sandbox = desk.wait_for("web", "running", running).await;
            let instance = &sandbox["status"]["instance"];
            before = instance["iid"].clone();
            let all = relatives(instance["pid"].as_u64().unwrap());
            let (pid, _) = all.iter().find(|(_, line)| line.starts_with(victim)).unwrap();
            let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.unwrap().success());
            let ended = |sandbox: &Value| sandbox["status"]["last_exit"]["iid"] == before;
            desk.wait_for("web", "ended", ended).await;
            for (pid, line) in &all {
                let left = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                assert!(left.is_empty() || left != line.as_bytes(), "{victim}: {line} lives on");
            }
        }
        desk.wait_for("web", "running again", |sandbox| {
            sandbox["status"]["phase"] == "Running"
                && sandbox["status"]["instance"]["iid"] != before
        })
        .await;
    }
}

/// A process whose command line has all of these words.
async fn find(words: &[&str]) -> u32 {
    let deadline = std::time::Instant::now() + crate::desk::PATIENCE;
    loop {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let found =
            pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                words.iter().all(|word| line.contains(word))
            });
        if let Some(pid) = found {
            return pid;
        }
        assert!(std::time::Instant::now() < deadline, "no process has {words:?}");
        tokio::task::yield_now().await;
    }
}

fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

fn kill(pid: u32) {
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

#[tokio::test]
async fn whoever_is_killed_in_whichever_phase_it_runs_once_and_nothing_is_left() {
    for program in versions() {
        let mut desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let spec = |n: usize| {
            json!({"isolation": "gvisor", "command": ["sleep", "1000"], "env": {"N": n.to_string()},
                "restart": {"policy": "always", "backoff": {"initial": "1s", "max": "1s"}},
                "stop": {"signal": "SIGTERM", "grace": "1s"}})
        };
        let run = desk.path("run/i").display().to_string();
        for (n, (victim, phase)) in [
            ("runsc", "starting"),
            ("shim", "starting"),
            ("daemon", "starting"),
            ("sentry", "starting"),
            ("shim", "running"),
            ("daemon", "running"),
            ("shim", "stopping"),
            ("daemon", "stopping"),
        ]
        .into_iter()
        .enumerate()
        {
            let before = desk.sandbox("web").await["status"]["instance"]["iid"].clone();
            // A change restarts it: what ran is stopped, and the next one starts.
            desk.write_spec("web.yaml", "web", &spec(n));
            if phase != "starting" && n > 0 {
                desk.wait_for("web", "changed", |sandbox| {
                    let instance = &sandbox["status"]["instance"];
                    sandbox["status"]["phase"] == "Running" && instance["iid"] != before
                })
                .await;
            }
            let target = match (victim, phase) {
                ("runsc", _) => find(&[&run, "run --detach"]).await,
                ("shim", "starting") => parent(find(&[&run, "run --detach"]).await),
                ("sentry", _) => find(&["runsc-sandbox", &run]).await,
                ("daemon", "starting") => {
                    find(&[&run, "run --detach"]).await;
                    desk.daemon.as_ref().unwrap().id()
                }
                ("shim", _) => parent(find(&["runsc-sandbox", &run]).await),
                _ => desk.daemon.as_ref().unwrap().id(),
            };
            if phase == "stopping" {
                // It begins to end, and is hit on the way.
                desk.post("/v1/sandboxes/web/restart", json!({})).await;
            }
            if victim == "daemon" {
                desk.kill();
                desk.start().await;
            } else {
                kill(target);
            }
            let running = |sandbox: &Value| {
                sandbox["status"]["phase"] == "Running"
                    && sandbox["status"]["observed_generation"] == sandbox["metadata"]["generation"]
                    && sandbox["status"]["observed_request"] == sandbox["power"]["request"]
            };
            let what = format!("running after {victim} was killed while {phase}");
            let sandbox = desk.wait_for("web", &what, running).await;
            let iid = sandbox["status"]["instance"]["iid"].as_str().unwrap().to_owned();
            let deadline = std::time::Instant::now() + crate::desk::PATIENCE;
            loop {
                let dirs = std::fs::read_dir(desk.path("run/i")).unwrap().flatten();
                let dirs: Vec<String> =
                    dirs.map(|dir| dir.file_name().into_string().unwrap()).collect();
                let strangers = strangers(&run, &iid);
                if dirs == [iid.clone()] && strangers.is_empty() {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{what}: {dirs:?} {strangers:?}");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

/// Processes of this daemon's sandboxes that are not of this instance.
fn strangers(run: &str, iid: &str) -> Vec<String> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(run) && !line.contains(iid))
        .collect()
}

#[tokio::test]
async fn an_idle_sandbox_takes_little_of_a_cpu_for_timers_may_be_late() {
    let program = versions().pop().unwrap();
    let begin = async |asked: &str| {
        let desk = Desk::with(json!({"gvisor": {"program": program, "timer_slack": asked}})).await;
        let spec = json!({"isolation": "gvisor", "command": ["sleep", "1000"]});
        desk.write_spec("web.yaml", "web", &spec);
        let web = desk.wait_phase("web", "Running").await;
        (desk, web["status"]["instance"]["pid"].as_u64().unwrap())
    };
    let are_all = |pid: u64, nanoseconds: &str| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let of = |tid: &str| std::fs::read_to_string(format!("/proc/{tid}/timerslack_ns"));
        let mut slacks = tasks.filter_map(|task| of(task.file_name().to_str()?).ok());
        slacks.all(|slack| slack.trim() == nanoseconds)
    };
    let (_exact, exact) = begin("0s").await;
    let (_late, late) = begin("10ms").await;
    // Once it has started, which that would make longer.
    let deadline = std::time::Instant::now() + crate::desk::PATIENCE;
    while !are_all(late, "10000000") {
        assert!(std::time::Instant::now() < deadline, "its timers are not late");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(are_all(exact, "50000"));
}
