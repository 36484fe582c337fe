//! Attacks on the walls, from outside: what a tenant may write is looked for on the host, what a client may ask leads
//! nowhere, and no runtime takes another's place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::desk::{Answer, Desk};

/// In every free text that a caller may set.
const MARKER: &str = "m4rk3r0fat3nant";
const ISOLATIONS: [&str; 3] = ["process", "bubblewrap", "gvisor"];
/// What loaders and interpreters obey.
const LOADED: [&str; 12] = [
    "LD_PRELOAD",
    "NODE_OPTIONS",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "GLIBC_TUNABLES",
    "BASH_ENV",
    "ENV",
    "NODE_PATH",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "GOTRACEBACK",
    "GCONV_PATH",
];

fn runsc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runsc/bookworm-backports")
}

async fn desk() -> Desk {
    Desk::with(json!({"gvisor": {"program": runsc()}})).await
}

async fn put(desk: &Desk, name: &str, spec: &Value) -> Answer {
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": name}, "spec": spec});
    desk.ask("PUT", &format!("/v1/sandboxes/{name}"), &document.to_string()).await
}

async fn declare(desk: &Desk, name: &str, spec: Value) -> Value {
    let answer = put(desk, name, &spec).await;
    assert!(answer.status < 300, "{:?}", answer.json);
    desk.wait_phase(name, "Running").await
}

/// Every process that shares the host's pids, and gVisor's own, in which a tenant's text may be found: where. The daemon
/// itself walks and copies `trees`, in which files have the names that tenants gave them.
fn told(own: &Path, trees: &[PathBuf]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let dir = entry.path();
        let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        if !is_process || entry.file_name().to_string_lossy() == std::process::id().to_string() {
            continue;
        }
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let is_outside = fs::read_link(dir.join("ns/pid")).ok() == fs::read_link(own).ok();
        if !is_outside && !line.starts_with(b"runsc") {
            continue;
        }
        let name = String::from_utf8_lossy(&line).replace('\0', " ");
        let mut look = |what: &str, bytes: &[u8]| {
            if bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()) {
                found.insert(format!("{what} of {name}"));
            }
        };
        look("arguments", &line);
        look("environment", &fs::read(dir.join("environ")).unwrap_or_default());
        // gVisor's kernel has users of its own, and the guest's files open: it is the wall, and stands inside of it.
        let users = fs::read_link(dir.join("ns/user")).ok();
        if is_outside && users == fs::read_link("/proc/self/ns/user").ok() {
            look("mapped files", &fs::read(dir.join("maps")).unwrap_or_default());
            let links = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
            let links = links.map(|link| link.path()).chain([dir.join("cwd"), dir.join("root")]);
            for link in links {
                let target = fs::read_link(link).unwrap_or_default();
                let walks = name.contains("/sodiumd run ")
                    && trees.iter().any(|tree| target.starts_with(tree));
                if walks {
                    continue;
                }
                look("descriptors", target.as_os_str().as_encoded_bytes());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_tenants_is_told_to_a_process_outside() {
    nothing_is_told(&desk().await, &ISOLATIONS).await;
}

/// Of the other isolations, one is not to be had, and one has no inside.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_tenants_is_told_to_a_process_of_an_ordinary_user() {
    nothing_is_told(&Desk::rootless().await, &["bubblewrap"]).await;
}

async fn nothing_is_told(desk: &Desk, isolations: &[&str]) {
    let done = Arc::new(AtomicBool::new(false));
    let trees = [desk.path("sandboxes"), desk.path("state/checkpoints")];
    let looking = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut found = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                found.extend(told(Path::new("/proc/self/ns/pid"), &trees));
            }
            found
        }
    });
    let loaded = LOADED.map(|name| (name.to_owned(), json!(format!("/{MARKER}"))));
    let env: serde_json::Map<String, Value> =
        loaded.into_iter().chain([(MARKER.to_owned(), json!(MARKER))]).collect();
    for isolation in isolations {
        let name = format!("{MARKER}-{isolation}");
        let script = format!("mkdir {MARKER}; cd {MARKER}; exec 9>{MARKER}; read line; sleep 1000");
        let spec = json!({
            "isolation": isolation, "command": ["bash", "-c", script, MARKER], "env": env,
            "files": {format!("{MARKER}.txt"): MARKER}, "limits": {"timeout_seconds": 0},
            "stop": {"grace": "0s"},
        });
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": name, "labels": {MARKER: MARKER}}, "spec": spec});
        let path = format!("/v1/sandboxes/{name}");
        let answer = desk.ask("PUT", &path, &document.to_string()).await;
        assert!(answer.status < 300, "{:?}", answer.json);
        desk.wait_phase(&name, "Running").await;
        let work_dir = format!("/home/container/{MARKER}");
        desk.wait_for(&name, "at work", |_| {
            let inside = ["exec", "--work-dir", &work_dir, &name, "--", "true"];
            desk.cli(&inside).0 == 0
        })
        .await;
        let inside = ["exec", "--work-dir", &work_dir, &name, "--", "sh", "-c"];
        let script = format!("echo {MARKER}; sleep 0.2");
        let (code, out, err) = desk.cli(&[&inside[..], &[&script]].concat());
        assert_eq!((code, out.trim()), (0, MARKER), "{err}");
        let order = json!({"command": ["sleep", "0.2", MARKER], "env": {MARKER: MARKER}});
        desk.post(&format!("{path}/exec"), order).await;
        let input = desk.post(&format!("{path}/input"), json!({"input": MARKER})).await;
        assert!(input.status < 300, "{:?}", input.json);
        if *isolation == "gvisor" {
            let kept = desk.post(&format!("/v1/sandboxes/{name}/checkpoint"), json!({})).await;
            assert!(kept.status < 300, "{:?}", kept.json);
        }
        let deleted = desk.ask("DELETE", &format!("/v1/sandboxes/{name}?wait=30s"), "").await;
        assert!(deleted.status < 300, "{:?}", deleted.json);
    }
    done.store(true, Ordering::Relaxed);
    // The command line of this test's own client is a tenant's, not the daemon's.
    let found: Vec<String> = looking
        .join()
        .unwrap()
        .into_iter()
        .filter(|place| !place.contains("/sodiumd --config "))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn no_loader_outside_obeys_a_tenants_environment() {
    let desk = desk().await;
    let trap = tempfile::tempdir().unwrap();
    fs::set_permissions(trap.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    for isolation in ISOLATIONS {
        let output = trap.path().join(isolation);
        let spec = json!({
            "isolation": isolation, "command": ["sleep", "1000"], "stop": {"grace": "0s"},
            "env": {"LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": output},
        });
        declare(&desk, isolation, spec).await;
        desk.cli(&["exec", isolation, "--", "true"]);
    }
    let caught: Vec<_> = fs::read_dir(trap.path()).unwrap().flatten().collect();
    assert!(caught.is_empty(), "{caught:?}");
}

#[tokio::test]
async fn no_directory_to_work_in_leads_out_of_a_sandbox() {
    let desk = desk().await;
    for isolation in ISOLATIONS {
        let script = "for n in $(seq 0 255); do ln -s /proc/self/fd/$n l$n; done; ln -s /proc/self/cwd c; \
            ln -s /proc/1/root r; ln -s / up; touch ready; exec sleep 1000";
        let spec = json!({
            "isolation": isolation, "command": ["bash", "-c", script], "stop": {"grace": "0s"},
            "limits": {"timeout_seconds": 0},
        });
        declare(&desk, isolation, spec).await;
        desk.wait_for(isolation, "ready", |_| {
            desk.cli(&["exec", isolation, "--", "test", "-e", "ready"]).0 == 0
        })
        .await;
        // gVisor's are its own descriptors, of which there are few; and each program costs it 50 ms.
        let last = if isolation == "gvisor" { 16 } else { 255 };
        let numbers = (0..=last).flat_map(|n| [format!("/proc/self/fd/{n}"), format!("l{n}")]);
        let others = ["/proc/self/cwd", "/proc/1/root", "/proc/1/cwd", "c", "r", "up"];
        for dir in numbers.chain(others.map(str::to_owned)) {
            let dir = if dir.starts_with('/') { dir } else { format!("/home/container/{dir}") };
            let show =
                "cd ../../../../..; ls -d proc/1/exe /work /root/.. 2>/dev/null; stat -c %d:%i .";
            let asked = ["exec", "--work-dir", &dir, isolation, "--", "sh", "-c", show];
            let (code, beneath, err) = desk.cli(&asked);
            let root = ["exec", "--work-dir", "/", isolation, "--", "sh", "-c", show];
            assert!(
                code != 0 || beneath == desk.cli(&root).1,
                "{isolation} {dir}: {beneath} {err}"
            );
        }
    }
}

/// What a runtime has started is its own: without the program, the sandbox is watched and ended as before, and
/// nothing is run in it by anybody else. Whether the daemon finds out at its start or later.
#[tokio::test]
async fn no_runtime_takes_the_place_of_another() {
    for isolation in ["gvisor", "bubblewrap"] {
        for at_restart in [true, false] {
            without_a_runtime(isolation, at_restart).await;
        }
    }
}

async fn without_a_runtime(isolation: &str, at_restart: bool) {
    let mut desk = Desk::prepared(json!({"gvisor": {"program": runsc()}}));
    desk.within = vec!["unshare", "--mount", "--propagation", "private"];
    desk.start().await;
    // A second one, for what only a sandbox that runs can be asked.
    let spec = json!({
        "isolation": isolation, "command": ["sleep", "1000"], "stop": {"grace": "0s"},
        "limits": {"timeout_seconds": 0, "disk_mb": 0},
    });
    let before = declare(&desk, "web", spec.clone()).await;
    declare(&desk, "next", spec).await;
    let gone = format!("mount --bind /dev/null {}", program(isolation));
    if at_restart {
        desk.kill();
        let script = format!("{gone} && exec \"$@\"");
        let script: &'static str = Box::leak(script.into_boxed_str());
        desk.within = vec!["unshare", "--mount", "sh", "-c", script, "sh"];
        desk.start().await;
    } else {
        let daemon = desk.daemon.as_ref().unwrap().id().to_string();
        let enter = ["--target", &daemon, "--mount", "sh", "-c", &gone];
        assert!(std::process::Command::new("nsenter").args(enter).status().unwrap().success());
    }
    let adopted = desk.wait_phase("web", "Running").await;
    assert_eq!(before["status"]["instance"]["id"], adopted["status"]["instance"]["id"]);
    let why = if at_restart { "is not installed" } else { "" };
    let (code, out, err) = desk.cli(&["exec", "web", "--", "cat", "/proc/1/cmdline"]);
    if isolation == "gvisor" {
        assert!(code != 0 && out.is_empty() && err.contains(why), "{out} {err}");
        let kept = desk.post("/v1/sandboxes/web/checkpoint?wait=20s", Value::Null).await;
        assert!(kept.status >= 400, "{:?}", kept.json);
    } else {
        // Its namespaces are entered by the kernel's own calls: it is still bubblewrap's inside.
        assert!(code == 0 && out.starts_with("bwrap"), "{out} {err}");
    }
    // What the kernel does, it does still.
    let sent = desk.post("/v1/sandboxes/web/input", json!({"input": "x"})).await;
    assert!(sent.status < 300, "{:?}", sent.json);
    desk.post("/v1/sandboxes/web/pause?wait=5s", Value::Null).await;
    desk.post("/v1/sandboxes/web/resume?wait=5s", Value::Null).await;
    desk.wait_phase("web", "Running").await;
    put(&desk, "other", &json!({"isolation": isolation, "command": ["sleep", "1"]})).await;
    desk.wait_for("other", "refused", |one| {
        one["status"]["phase"] == "Failed" && one.to_string().contains(why)
    })
    .await;
    let stopped = desk.post("/v1/sandboxes/web/stop?wait=30s", Value::Null).await;
    assert!(stopped.status < 300, "{:?}", stopped.json);
    desk.wait_phase("web", "Stopped").await;
    // Ended, and not begun by anybody else.
    desk.post("/v1/sandboxes/next/restart", Value::Null).await;
    desk.wait_for("next", "ended", |one| one["status"]["phase"] != "Running").await;
    for name in ["web", "next", "other"] {
        let deleted = desk.ask("DELETE", &format!("/v1/sandboxes/{name}?wait=30s"), "").await;
        assert!(deleted.status < 300, "{name}: {:?}", deleted.json);
    }
}

/// In the host's network nothing but Landlock keeps a tenant from sockets that have no path.
#[tokio::test]
async fn nobody_in_the_hosts_network_reaches_its_sockets_without_a_path() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("sodium-walls-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let desk = Desk::with(json!({"network": {"enabled": true}})).await;
    let script = "import socket, sys, time\n\
        print('answer', socket.socket(socket.AF_UNIX).connect_ex('\\0' + sys.argv[1]), flush=True)\n\
        if len(sys.argv) < 3: time.sleep(1000)";
    for isolation in ["process", "bubblewrap"] {
        let command = ["python3", "-c", script, &name];
        let spec = json!({"isolation": isolation, "network": "host", "command": command});
        declare(&desk, isolation, spec).await;
        let refused = format!("answer {}\n", nix::libc::EPERM);
        assert_eq!(desk.wait_logs(isolation, "answer").await, refused, "{isolation}");
        let inside = ["exec", isolation, "--", "python3", "-c", script, &name, "once"];
        assert_eq!(desk.cli(&inside).1, refused, "{isolation}, by exec");
    }
    drop(listener);
}

fn program(isolation: &str) -> String {
    match isolation {
        "gvisor" => runsc().to_string_lossy().into_owned(),
        _ => "/usr/bin/bwrap".to_owned(),
    }
}

/// A program whose name is as long as a word may be cannot be run, and that is told in a few bytes.
#[tokio::test]
async fn a_failure_that_quotes_a_tenant_at_length_leaves_a_sandbox_that_can_be_asked() {
    let desk = desk().await;
    let long = format!("/{}", "x".repeat(100_000));
    for isolation in ISOLATIONS {
        let spec =
            json!({"isolation": isolation, "command": [long], "restart": {"policy": "never"}});
        assert!(put(&desk, isolation, &spec).await.status < 300);
        let failed = desk.wait_phase(isolation, "Failed").await;
        assert!(failed.to_string().len() < 300_000, "{}", failed.to_string().len());
        let name = format!("up-{isolation}");
        let runs =
            json!({"isolation": isolation, "command": ["sleep", "1000"], "stop": {"grace": "0s"}});
        declare(&desk, &name, runs).await;
        let (code, _, err) = desk.cli(&["exec", &name, "--", &long]);
        assert!(code != 0 && err.len() < 8192, "{code} {}", err.len());
        assert_eq!(desk.cli(&["exec", &name, "--", "true"]).0, 0);
    }
}
