//! The daemon as a whole: what it does with files, what it survives, and what is left behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE};

fn sleeper() -> Value {
    json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}})
}

fn pid(sandbox: &Value) -> u64 {
    sandbox["status"]["instance"]["pid"].as_u64().unwrap()
}

fn alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn wait_dead(pid: u64) {
    let deadline = Instant::now() + PATIENCE;
    while alive(pid) {
        assert!(Instant::now() < deadline, "{pid} lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The parent of a process, and its parent: the way from a workload to its shim.
fn ancestors(pid: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = pid;
    while at > 1 {
        let stat = fs::read_to_string(format!("/proc/{at}/stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(") ") else { break };
        at = rest.split(' ').nth(1).unwrap().parse().unwrap();
        found.push(at);
    }
    found
}

fn kill(pid: u64) {
    // One that died of its parent's death a moment ago is dead too.
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).output().unwrap();
}

#[tokio::test]
async fn a_killed_daemon_finds_its_sandboxes_running_and_learns_what_it_missed() {
    let mut desk = Desk::new().await;
    for name in ["a", "b"] {
        desk.write_spec(&format!("{name}.yaml"), name, &sleeper());
    }
    let script = "while [ ! -e go ]; do sleep 0.02; done; exit 9";
    let brief = json!({"command": ["bash", "-c", script], "restart": {"policy": "never"}});
    desk.write_spec("brief.yaml", "brief", &brief);
    let (a, b) = (desk.wait_phase("a", "Running").await, desk.wait_phase("b", "Running").await);
    let brief = desk.wait_phase("brief", "Running").await;
    desk.kill();
    fs::write(desk.workspace(&brief).join("go"), "").unwrap();
    wait_dead(pid(&brief)).await;
    desk.start().await;
    assert_eq!(pid(&desk.wait_phase("a", "Running").await), pid(&a));
    assert_eq!(pid(&desk.wait_phase("b", "Running").await), pid(&b));
    let ended = desk.wait_phase("brief", "Failed").await;
    assert_eq!(ended["status"]["last_exit"]["code"], 9);
    assert_eq!(desk.sandbox("a").await["status"]["restarts"], 0);
    // Adopted means obeyed: a stop works as before.
    let stopped = desk.post("/v1/sandboxes/a/stop?wait=30s", Value::Null).await;
    assert_eq!(stopped.status, 200, "{stopped:?}");
    wait_dead(pid(&a)).await;
}

#[tokio::test]
async fn the_daemon_may_die_at_any_moment_of_a_start_and_nothing_is_doubled() {
    let mut desk = Desk::new().await;
    for round in 0..12_u64 {
        let name = format!("twin{round}");
        desk.write_spec(&format!("{name}.yaml"), &name, &sleeper());
        let ask = desk.ask("GET", "/v1/files", "");
        ask.await;
        tokio::time::sleep(Duration::from_millis(150 + round * 3)).await;
        desk.kill();
        desk.start().await;
    }
    for round in 0..12 {
        desk.wait_phase(&format!("twin{round}"), "Running").await;
    }
    let names = || {
        let entries = fs::read_dir(desk.path("run/i")).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(
        names().len(),
        12,
        "one instance each, and no remains: {:?}\n{}",
        names(),
        desk.log()
    );
    let mut workloads = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = environ.windows(19).any(|part| part == b"SODIUM_SANDBOX=twin");
        workloads += usize::from(ours && line.starts_with(b"sleep"));
    }
    assert_eq!(workloads, 12);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_says_who_has_it() {
    let desk = Desk::new().await;
    let mut second = desk.spawn();
    assert_eq!(second.wait().unwrap().code(), Some(1));
    let holder = desk.daemon.as_ref().unwrap().id();
    let log = desk.log();
    assert!(log.contains(&format!("another sodiumd (pid {holder}) uses")), "{log}");
    assert_eq!(desk.get("/health").await.status, 200);
}

#[tokio::test]
async fn an_orderly_end_leaves_the_sandboxes_running() {
    let mut desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &sleeper());
    let a = desk.wait_phase("a", "Running").await;
    let mut daemon = desk.daemon.take().unwrap();
    std::process::Command::new("kill").args(["-INT", &daemon.id().to_string()]).status().unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(alive(pid(&a)));
    desk.start().await;
    assert_eq!(pid(&desk.wait_phase("a", "Running").await), pid(&a));
}

#[tokio::test]
async fn whoever_of_a_sandbox_is_killed_it_ends_whole_and_comes_back_once() {
    let desk = Desk::new().await;
    let restart = json!({"policy": "always", "backoff": {"initial": "50ms", "max": "50ms"}});
    let spec =
        json!({"command": ["sleep", "1000"], "restart": restart, "limits": {"timeout_seconds": 0}});
    desk.write_spec("a.yaml", "a", &spec);
    let mut last = 0;
    // The workload, bubblewrap's init, bubblewrap, the shim; then all of them.
    for victim in 0..5 {
        let again = |one: &Value| {
            one["status"]["phase"] == "Running"
                && one["status"]["instance"]["pid"].as_u64() != Some(last)
        };
        let running = desk.wait_for("a", "running again", again).await;
        last = pid(&running);
        let mut family = vec![last];
        family.extend(ancestors(last).into_iter().take(3));
        for one in family.iter().enumerate().filter(|(at, _)| *at == victim || victim == 4) {
            kill(*one.1);
        }
        for one in family {
            wait_dead(one).await;
        }
    }
    let again = |one: &Value| {
        one["status"]["phase"] == "Running"
            && one["status"]["instance"]["pid"].as_u64() != Some(last)
    };
    desk.wait_for("a", "running again", again).await;
    assert_eq!(fs::read_dir(desk.path("run/i")).unwrap().count(), 1);
}

#[tokio::test]
async fn files_are_edited_broken_mended_renamed_and_removed() {
    let desk = Desk::new().await;
    desk.write_spec("web.yaml", "web", &sleeper());
    let first = desk.wait_phase("web", "Running").await;
    // In place: the limit moves, the process stays.
    let mut spec = sleeper();
    spec["limits"]["memory_mb"] = json!(99);
    desk.write_spec("web.yaml", "web", &spec);
    let adjusted = |one: &Value| one["status"]["observed_generation"] == 2;
    let second = desk.wait_for("web", "adjusted", adjusted).await;
    assert_eq!(pid(&second), pid(&first));
    let limits = second["status"]["limits"].as_array().unwrap();
    assert!(limits.iter().any(|limit| limit["limit"] == "memory_mb" && limit["read_back"] == 99));
    // Restart: another command is another process.
    spec["command"] = json!(["sleep", "2000"]);
    desk.write_spec("web.yaml", "web", &spec);
    let third = desk
        .wait_for("web", "restarted", |one| {
            one["status"]["observed_generation"] == 3 && one["status"]["phase"] == "Running"
        })
        .await;
    assert_ne!(pid(&third), pid(&second));
    // Broken: told, and nothing else.
    fs::write(desk.path("desired/web.yaml"), "spec: {limits: {memroy_mb: 1}}").unwrap();
    let fault = |one: &Value| {
        let conditions = one["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|condition| condition["reason"] == "InvalidFile")
    };
    let broken = desk.wait_for("web", "told of the fault", fault).await;
    assert_eq!(pid(&broken), pid(&third));
    assert!(desk.cli(&["get", "files"]).1.contains("Invalid"));
    // Mended, then renamed: the same process all along.
    desk.write_spec("web.yaml", "web", &spec);
    desk.wait_for("web", "mended", |one| !fault(one)).await;
    fs::rename(desk.path("desired/web.yaml"), desk.path("desired/other.yaml")).unwrap();
    let renamed = |one: &Value| one["metadata"]["owner"] == "file:other.yaml";
    assert_eq!(pid(&desk.wait_for("web", "renamed", renamed).await), pid(&third));
    // Removed: it goes, and its workspace is kept until the file comes back.
    fs::write(desk.workspace(&third).join("mine"), "kept").unwrap();
    fs::remove_file(desk.path("desired/other.yaml")).unwrap();
    desk.wait_for("web", "gone", |one| one["code"] == "not_found").await;
    wait_dead(pid(&third)).await;
    desk.write_spec("other.yaml", "web", &spec);
    let back = desk.wait_phase("web", "Running").await;
    assert_eq!(fs::read_to_string(desk.workspace(&back).join("mine")).unwrap(), "kept");
}

/// A fault of a file that somebody has saved is told at once, with its place: only what is still being written is waited
/// with, for two seconds.
#[tokio::test]
async fn a_bad_file_is_told_as_soon_as_it_is_saved() {
    let desk = Desk::new().await;
    // As editors do it, by a rename, and as the others do.
    let mut fastest = [Duration::MAX; 2];
    let at_once = Duration::from_millis(1_500);
    for n in 0..30 {
        if fastest.iter().all(|one| *one < at_once) {
            return;
        }
        let name = format!("bad{n}.yaml");
        let text =
            "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {name: a}\nspec:\n  image: bahs\n";
        let began = Instant::now();
        if n % 2 == 1 {
            fs::write(desk.path("desired/.bad"), text).unwrap();
            fs::rename(desk.path("desired/.bad"), desk.path("desired").join(&name)).unwrap();
        } else {
            fs::write(desk.path("desired").join(&name), text).unwrap();
        }
        let found = loop {
            let files = desk.get("/v1/files").await.json;
            let mut all = files["items"].as_array().into_iter().flatten();
            if let Some(found) = all.find(|one| one["path"] == *name) {
                break found["faults"][0].clone();
            }
            assert!(began.elapsed() < PATIENCE, "{files}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        fastest[n % 2] = fastest[n % 2].min(began.elapsed());
        assert_eq!(
            (&found["path"], &found["line"], &found["column"]),
            (&json!("spec.image"), &json!(5), &json!(10))
        );
    }
    panic!("none was told at once: {fastest:?}");
}

#[test]
fn a_first_configuration_is_written_and_all_of_its_examples_are_well() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sodiumd"));
        let output = command.current_dir(dir.path()).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, _, said) = run(&["init"]);
    assert!(code == Some(0) && said.contains("sodiumd run --config ./config.json"), "{said}");
    let (code, said, error) = run(&["check", "desired"]);
    assert!(code == Some(0) && said.lines().count() == 4, "{said}{error}");
    let (code, _, error) = run(&["check", "images/none"]);
    assert!(code == Some(1) && error.contains("No such file"), "{error}");
    assert!(run(&["init"]).2.contains("kept  ./config.json"));
}

#[tokio::test]
async fn an_emptied_or_missing_directory_stops_nothing_until_somebody_confirms() {
    let desk = Desk::new().await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        desk.write_spec(&format!("{name}.yaml"), name, &sleeper());
    }
    for name in names {
        desk.wait_phase(name, "Running").await;
    }
    // Gone altogether, as if unmounted.
    fs::rename(desk.path("desired"), desk.path("elsewhere")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fs::create_dir(desk.path("desired")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while desk.cli(&["get", "files"]).1.matches("Held").count() < names.len() {
        assert!(Instant::now() < deadline, "{}", desk.cli(&["get", "files"]).1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for name in names {
        assert_eq!(desk.sandbox(name).await["status"]["phase"], "Running");
    }
    assert_eq!(desk.cli(&["confirm"]).0, 0);
    for name in names {
        desk.wait_for(name, "gone", |one| one["code"] == "not_found").await;
    }
}

#[tokio::test]
async fn what_is_no_spec_is_told_and_harms_no_other() {
    let desk = Desk::new().await;
    let at = |name: &str| desk.path("desired").join(name);
    fs::write(at("half.yaml"), "apiVersion: sodium.dev/v1\nkind: Sand").unwrap();
    fs::write(at("latin.yaml"), b"metadata: {name: caf\xe9}").unwrap();
    fs::write(at("big.yaml"), vec![b'#'; 5 << 20]).unwrap();
    fs::create_dir(at("dir.yaml")).unwrap();
    symlink("/etc/hostname", at("out.yaml")).unwrap();
    std::process::Command::new("mkfifo").arg(at("pipe.yaml")).status().unwrap();
    fs::write(at("bom.yaml"), "\u{feff}apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {name: bom}\nspec: {command: [sleep, '9']}\n").unwrap();
    desk.write_spec("good.yaml", "good", &sleeper());
    desk.wait_phase("good", "Running").await;
    desk.wait_phase("bom", "Running").await;
    let want = [
        ("half.yaml", "is missing"),
        ("latin.yaml", "UTF-8"),
        ("big.yaml", "the limit is"),
        ("dir.yaml", "is not a file"),
        ("out.yaml", "symlink out"),
        ("pipe.yaml", "is not a file"),
    ];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = desk.get("/v1/files").await.json;
        let fault = |name: &str| {
            let item = files["items"]
                .as_array()
                .unwrap()
                .iter()
                .find(|item| item["path"] == name)
                .cloned();
            item.unwrap_or_default()["faults"].to_string()
        };
        if want.iter().all(|(name, text)| fault(name).contains(text)) {
            return;
        }
        assert!(Instant::now() < deadline, "{files:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn ten_thousand_specs_are_taken_and_one_edit_among_them_is_quick() {
    // A range of its own, large enough.
    let uids = json!({"first": 2_000_000_000, "count": 80_000});
    let mut desk = Desk::prepared(json!({"uids": uids}));
    for index in 0..10_000 {
        let spec = json!({"command": ["true"], "state": "stopped"});
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": format!("s{index}")}, "spec": spec});
        fs::write(desk.path("desired").join(format!("s{index}.yaml")), document.to_string())
            .unwrap();
    }
    desk.start().await;
    let deadline = Instant::now() + PATIENCE * 2;
    while desk.get("/v1/sandboxes/s9999").await.status != 200 {
        assert!(Instant::now() < deadline, "{}", desk.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The rest of them is left alone: of so many transactions are the edit, its start and what belongs to it.
    let committed = async || {
        let list = desk.get("/v1/sandboxes").await.json;
        let version = list["resource_version"].as_str().unwrap().to_owned();
        version.rsplit_once('-').unwrap().1.parse::<u64>().unwrap()
    };
    let mut before = 0;
    while committed().await != before {
        assert!(Instant::now() < deadline, "{}", desk.log());
        before = committed().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    desk.write_spec("s5000.yaml", "s5000", &json!({"command": ["sleep", "1000"]}));
    desk.wait_phase("s5000", "Running").await;
    let transactions = committed().await - before;
    assert!(transactions < 20, "{transactions}");
}

#[tokio::test]
async fn stdin_that_is_not_read_is_bounded_and_said() {
    let desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &sleeper());
    desk.wait_phase("a", "Running").await;
    // The kernel's pipe and our buffer hold some; the rest is refused, not lost silently.
    let answer = desk.post("/sandboxes/a/input", json!({"input": "x".repeat(300_000)})).await;
    assert_eq!((answer.status, &answer.json["code"]), (503, &json!("stdin_full")), "{answer:?}");
    let taken = answer.json["taken"].as_u64().unwrap();
    assert!((60_000..300_000).contains(&taken), "{answer:?}");
    assert_eq!(desk.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_slow_reader_of_stdin_gets_every_byte() {
    let desk = Desk::new().await;
    let script = "import sys, time\nn = 0\nwhile True:\n    b = sys.stdin.buffer.read1(7000)\n    if not b: break\n    n += len(b)\n    time.sleep(0.01)\n    if n >= 200001: break\nprint('read', n)";
    desk.write_spec("a.yaml", "a", &json!({"command": ["python3", "-c", script]}));
    desk.wait_phase("a", "Running").await;
    let answer = desk.post("/sandboxes/a/input", json!({"input": "x".repeat(200_000)})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    desk.wait_logs("a", "read 200001").await;
}

#[tokio::test]
async fn a_thousand_idle_connections_leave_room_for_one_more() {
    let desk = Desk::new().await;
    let idle: Vec<std::net::TcpStream> = (0..1_000)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", desk.port)).unwrap())
        .collect();
    assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
    drop(idle);
}

#[tokio::test]
async fn a_full_disk_refuses_and_says_so_and_what_runs_goes_on() {
    let mut desk = Desk::prepared(json!({"state_path": "./small/state"}));
    desk.add_disk("small", 24);
    let small = desk.path("small");
    desk.start().await;
    let chatty = json!({"command": ["bash", "-c", "while :; do echo tick; sleep 0.02; done"],
        "limits": {"timeout_seconds": 0}});
    desk.write_spec("a.yaml", "a", &chatty);
    let a = desk.wait_phase("a", "Running").await;
    // Fill it to the last block.
    let mut filler = fs::File::create(small.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "b"},
        "spec": {"command": ["true"], "files": {"x": "y".repeat(100_000)}}});
    let refused = desk.ask("PUT", "/v1/sandboxes/b", &document.to_string()).await;
    assert_eq!((refused.status, &refused.json["code"]), (507, &json!("disk_full")), "{refused:?}");
    assert!(refused.json["error"].as_str().unwrap().contains("free some space"), "{refused:?}");
    assert!(alive(pid(&a)));
    assert_eq!(desk.get("/v1/sandboxes/b").await.status, 404);
    assert_eq!(desk.get("/readyz").await.status, 503);
    drop(filler);
    fs::remove_file(small.join("filler")).unwrap();
    // ext4 gives freed blocks out again once its journal has said so on the disk, and a moment later.
    fs::File::open(&small).unwrap().sync_all().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while desk.get("/readyz").await.status != 200 {
        assert!(Instant::now() < deadline, "not ready again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let done = desk.ask("PUT", "/v1/sandboxes/b", &document.to_string()).await;
    assert_eq!(done.status, 201, "{done:?}");
    desk.wait_phase("b", "Completed").await;
    assert_eq!(pid(&desk.sandbox("a").await), pid(&a));
    assert_eq!(desk.post("/v1/sandboxes/a/stop?wait=30s", Value::Null).await.status, 200);
    let deadline = Instant::now() + PATIENCE;
    while fs::read_dir(desk.path("run/i")).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "a shim stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Mounted read-only, a start says so.
    desk.kill();
    desk.disk.as_ref().unwrap().mount_again("ro");
    assert_eq!(desk.spawn().wait().unwrap().code(), Some(1));
    assert!(desk.log().contains("Read-only file system"), "{}", desk.log());
    // What is left is cleaned up on the file system as it was.
    desk.disk.as_ref().unwrap().mount_again("rw");
}

#[tokio::test]
async fn a_state_directory_that_is_gone_or_not_to_be_written_is_said() {
    let mut desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &sleeper());
    desk.wait_phase("a", "Running").await;
    fs::rename(desk.path("state"), desk.path("moved")).unwrap();
    let refused = desk.post("/v1/sandboxes/a/stop", Value::Null).await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(desk.log().contains("was removed or replaced while in use"), "{}", desk.log());
    assert_eq!(desk.get("/readyz").await.status, 503);
    fs::rename(desk.path("moved"), desk.path("state")).unwrap();
    assert_eq!(desk.post("/v1/sandboxes/a/stop?wait=30s", Value::Null).await.status, 200);
    desk.kill();
    // Read-only, even for root: a file where the directory should be.
    fs::rename(desk.path("state"), desk.path("moved")).unwrap();
    fs::write(desk.path("state"), "").unwrap();
    let mut daemon = desk.spawn();
    assert_eq!(daemon.wait().unwrap().code(), Some(1));
    assert!(desk.log().contains("make "), "{}", desk.log());
    fs::remove_file(desk.path("state")).unwrap();
    fs::rename(desk.path("moved"), desk.path("state")).unwrap();
}

#[tokio::test]
async fn two_daemons_of_one_host_never_give_out_the_same_host_uids() {
    let uids = json!({"first": 2_040_000_000_u32, "count": 1000});
    let desk = Desk::with(json!({"uids": uids})).await;
    let beside = json!({"first": 2_040_000_999_u32, "count": 1000});
    let second = Desk::prepared(json!({"uids": beside}));
    assert_eq!(second.spawn().wait().unwrap().code(), Some(1));
    let (log, holder) = (second.log(), desk.daemon.as_ref().unwrap().id());
    let said = format!("another sodiumd (pid {holder}) gives out the host uids 2040000000-1000");
    assert!(log.contains(&said), "{log}");
    // A sandbox has one of its own daemon's, on its processes and on its files.
    desk.write_spec("a.yaml", "a", &sleeper());
    let a = desk.wait_phase("a", "Running").await;
    let status = fs::read_to_string(format!("/proc/{}/status", pid(&a))).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let uid: u32 = uid.split_whitespace().next().unwrap().parse().unwrap();
    assert!((2_040_000_000..2_040_001_000).contains(&uid), "{uid}");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(desk.workspace(&a)).unwrap());
    assert_eq!(owner, uid);
}

#[tokio::test]
async fn a_directory_that_somebody_else_has_made_is_not_taken_over() {
    use std::os::unix::fs::{PermissionsExt, chown};
    for key in ["state_path", "run_path", "sandboxes_path"] {
        let mut desk = Desk::prepared(json!({key: "./planted"}));
        let planted = desk.path("planted");
        // Such as a database, a socket, or a file system for root to mount.
        fs::create_dir_all(planted.join(".disk/.templates")).unwrap();
        for (owner, mode, why) in [
            (1_234, 0o700, "belongs to uid 1234"),
            (0, 0o1777, "can be written to by others (mode 1777)"),
        ] {
            chown(&planted, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&planted, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(desk.spawn().wait().unwrap().code(), Some(1), "{key}");
            let log = desk.log();
            assert!(log.contains(why) && log.contains(&format!("{key:?} in config.json")), "{log}");
            assert_eq!(fs::metadata(&planted).unwrap().permissions().mode() & 0o7777, mode);
            // The doctor says so beforehand.
            let (code, said, _) = desk.cli(&["doctor"]);
            assert!(code != 0 && said.contains(why), "{key}: {said}");
        }
        // As the message says.
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o700)).unwrap();
        desk.start().await;
    }
}

#[tokio::test]
async fn two_daemons_share_none_of_their_directories() {
    let mut first = Desk::new().await;
    for key in ["state_path", "run_path", "sandboxes_path"] {
        let path = match key {
            "run_path" => first.path("run"),
            "state_path" => first.path("state"),
            _ => first.path("sandboxes"),
        };
        let second = Desk::prepared(json!({key: path}));
        let mut daemon = second.spawn();
        assert_eq!(daemon.wait().unwrap().code(), Some(1), "{key}");
        let log = second.log();
        assert!(log.contains(&format!("give this one its own {key:?} in config.json")), "{log}");
    }
    first.kill();
}

#[tokio::test]
async fn a_host_uid_of_which_anything_is_left_is_passed_over() {
    let first = 2_041_000_000_u32;
    let uids = json!({"first": first, "count": 1000});
    let mut desk = Desk::prepared(json!({"uids": uids}));
    // As an earlier daemon may have left it: a program that got away, and memory that outlives its maker.
    let id = first.to_string();
    let mut left = std::process::Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "sleep", "1000"])
        .spawn()
        .unwrap();
    let memory = format!("/dev/shm/sodium-it-{id}");
    fs::write(&memory, "secret").unwrap();
    std::os::unix::fs::chown(&memory, Some(first + 1), Some(first + 1)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let is_theirs = || {
        let status = fs::read_to_string(format!("/proc/{}/status", left.id())).unwrap();
        status.contains(&id)
    };
    while !is_theirs() {
        assert!(Instant::now() < deadline, "setpriv takes long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    desk.start().await;
    desk.write_spec("a.yaml", "a", &sleeper());
    let a = desk.wait_phase("a", "Running").await;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(desk.workspace(&a)).unwrap());
    left.kill().unwrap();
    left.wait().unwrap();
    fs::remove_file(&memory).unwrap();
    assert_eq!(owner, first + 2);
}

#[tokio::test]
async fn nobody_else_is_where_localhost_may_lead() {
    for host in ["127.0.0.1", "0.0.0.0"] {
        let desk = Desk::with(json!({"host": host})).await;
        for address in ["127.0.0.1", "[::1]"] {
            let url = format!("http://{address}:{}/healthz", desk.port);
            let answer = reqwest::get(&url).await.unwrap();
            assert_eq!(answer.status(), 200, "{url}");
            let taken = std::net::TcpListener::bind(format!("{address}:{}", desk.port));
            assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "{address}");
        }
    }
}
