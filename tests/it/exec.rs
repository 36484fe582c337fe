//! Programs inside what runs: by command line, POST and WebSocket, under every isolation.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sodium_sys::pty;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use crate::desk::{Desk, PATIENCE, TOKEN};
use crate::gvisor::versions;

/// A daemon with each version of runsc, and sandboxes of every isolation; plain processes and
/// bubblewrap only once.
async fn desks() -> Vec<(Desk, Vec<&'static str>)> {
    let mut desks = Vec::new();
    for (index, program) in versions().into_iter().enumerate() {
        let desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let mut names = vec!["gvisor"];
        if index == 0 {
            names.extend(["bubblewrap", "process"]);
        }
        for name in &names {
            let spec = json!({"isolation": name, "command": ["sleep", "1000"], "env": {"A": "own"},
                "limits": {"memory_mb": 128, "max_processes": 32, "max_files": 222},
                "files": {"breakout.py": include_str!("breakout.py")}});
            desk.write_spec(&format!("{name}.yaml"), name, &spec);
        }
        for name in &names {
            desk.wait_phase(name, "Running").await;
        }
        desks.push((desk, names));
    }
    desks
}

#[tokio::test]
async fn a_program_inside_has_the_workloads_world_and_its_own_code() {
    for (desk, names) in desks().await {
        for name in names {
            let script = "read line; echo $line $A $B $(ulimit -n) $(pwd); echo oops >&2; exit 7";
            let mut client = desk
                .command(&[
                    "exec",
                    "--env",
                    "B=b",
                    "--work-dir",
                    "/tmp",
                    name,
                    "--",
                    "bash",
                    "-c",
                    script,
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            client.stdin.take().unwrap().write_all(b"hello\n").unwrap();
            let output = client.wait_with_output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            assert_eq!(text(output.stdout), "hello own b 222 /tmp\n", "{name}");
            assert_eq!((text(output.stderr), output.status.code()), ("oops\n".to_owned(), Some(7)));
            let (code, _, said) = desk.cli(&["exec", name, "--", "no-such-program"]);
            assert!(code == 127 && said.contains("no-such-program"), "{name}: {code} {said}");
            assert_eq!(desk.cli(&["exec", name, "--", "sh", "-c", "kill -9 $$"]).0, 137, "{name}");
            let asked = json!({"command": ["sh", "-c", "cat; echo e >&2; exit 3"], "stdin": "in"});
            let answer = desk.post(&format!("/v1/sandboxes/{name}/exec"), asked).await;
            let want = json!({"code": 3, "signal": null, "stdout": "in", "stderr": "e\n",
                "truncated": false});
            assert_eq!((answer.status, answer.json), (200, want), "{name}");
        }
        for (what, asked, status) in [
            ("no command", json!({}), 422),
            ("a relative directory", json!({"command": ["true"], "work_dir": "x"}), 422),
            ("an unknown field", json!({"command": ["true"], "tty": true}), 422),
            ("over time", json!({"command": ["sleep", "100"], "timeout_seconds": 1}), 504),
        ] {
            let answer = desk.post("/v1/sandboxes/gvisor/exec", asked).await;
            assert_eq!(answer.status, status, "{what}: {answer:?}");
        }
        // Nothing is left of any of them.
        wait_until("its files are gone", || files_of_programs(&desk).is_empty());
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_whole_and_an_unread_input_holds_up_only_its_sender() {
    for (desk, names) in desks().await {
        for name in names {
            let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
            let mut client = desk
                .command(&["exec", name, "--", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (mut input, bytes) = (client.stdin.take().unwrap(), sent.clone());
            let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
            let output = client.wait_with_output().unwrap();
            writer.join().unwrap();
            assert!(output.stdout == sent, "{name}: {} bytes came back", output.stdout.len());
            let mut client = desk
                .command(&["exec", name, "--", "sh", "-c", "sleep 0.3; exit 4"])
                .stdin(std::fs::File::open("/dev/zero").unwrap())
                .spawn()
                .unwrap();
            assert_eq!(client.wait().unwrap().code(), Some(4), "{name}");
        }
    }
}

#[tokio::test]
async fn a_program_inside_is_gone_when_its_client_is() {
    for (mut desk, names) in desks().await {
        for name in &names {
            let mut client = sleeper(&desk, name).await;
            client.kill().unwrap();
            client.wait().unwrap();
            wait_until("it is gone", || !sleeps(&desk, name));
        }
        // And with the daemon, which is everybody's client.
        let mut clients = Vec::new();
        for name in &names {
            clients.push(sleeper(&desk, name).await);
        }
        desk.kill();
        for client in &mut clients {
            assert_eq!(client.wait().unwrap().code(), Some(1));
        }
        desk.start().await;
        for name in &names {
            desk.wait_phase(name, "Running").await;
            wait_until("it is gone", || !sleeps(&desk, name));
        }
    }
}

#[tokio::test]
async fn a_sandbox_ends_with_what_is_run_inside() {
    for (desk, names) in desks().await {
        for name in names {
            let mut client = sleeper(&desk, name).await;
            let path = format!("/v1/sandboxes/{name}/kill?wait=60s");
            assert_eq!(desk.post(&path, json!({})).await.status, 200);
            assert_ne!(client.wait().unwrap().code(), Some(0), "{name}");
            let (code, _, said) = desk.cli(&["exec", name, "--", "true"]);
            assert!(code == 1 && said.contains("not running"), "{name}: {code} {said}");
        }
    }
}

#[tokio::test]
async fn a_terminal_has_a_size_and_keys() {
    for (desk, names) in desks().await {
        for name in names {
            let terminal = pty::open(91, 33).unwrap();
            let end = || Stdio::from(terminal.slave.try_clone().unwrap());
            let script = "stty size; trap 'echo interrupted; exit 5' INT; echo ready; \
                while :; do sleep 0.05; done";
            let mut client = desk
                .command(&["exec", name, "--", "bash", "-c", script])
                .stdin(end())
                .stdout(end())
                .stderr(end())
                .spawn()
                .unwrap();
            let mut master = std::fs::File::from(terminal.master);
            let mut seen = String::new();
            read_until(&mut master, &mut seen, "ready");
            assert!(seen.contains("33 91"), "{name}: {seen}");
            master.write_all(b"\x03").unwrap();
            read_until(&mut master, &mut seen, "interrupted");
            assert_eq!(client.wait().unwrap().code(), Some(5), "{name}");
        }
    }
}

#[tokio::test]
async fn nothing_gets_out_of_a_program_inside_either() {
    let outside = tempfile::Builder::new().prefix("sodium-it-").tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(outside.path(), mode).unwrap();
    std::fs::write(outside.path().join("secret"), "x").unwrap();
    let (path, pid) = (outside.path().to_str().unwrap(), std::process::id().to_string());
    for (desk, names) in desks().await {
        for name in names.into_iter().filter(|name| *name != "process") {
            let command = ["exec", name, "--", "python3", "breakout.py", path, &pid, name];
            let (code, out, said) = desk.cli(&command);
            assert_eq!((code, &*out), (0, "tried\n"), "{name}: {said}");
        }
    }
}

#[tokio::test]
async fn nothing_reaches_a_neighbour() {
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port().to_string();
    for program in versions() {
        let desk = Desk::with(json!({"gvisor": {"program": program}})).await;
        let kinds = ["gvisor", "bubblewrap", "process"];
        for kind in kinds {
            for (name, command) in
                [("home", vec!["python3", "n.py"]), ("next", vec!["sleep", "1000"])]
            {
                let spec = json!({"isolation": kind, "command": command,
                    "files": {"n.py": include_str!("neighbour.py")}});
                desk.write_spec(&format!("{kind}-{name}.yaml"), &format!("{kind}-{name}"), &spec);
            }
        }
        for (at, from) in kinds.iter().flat_map(|at| kinds.map(|from| (*at, from))) {
            let (home, next) = (format!("{at}-home"), format!("{from}-next"));
            desk.wait_logs(&home, "at home").await;
            desk.wait_phase(&next, "Running").await;
            // It may have spoken before it was noted that it runs.
            let sandbox = desk.wait_phase(&home, "Running").await;
            let workspace = desk.workspace(&sandbox);
            assert!(workspace.join("secret").exists());
            let pid = sandbox["status"]["instance"]["pid"].to_string();
            let reach =
                ["exec", &next, "--", "python3", "n.py", workspace.to_str().unwrap(), &pid, &port];
            let (code, out, said) = desk.cli(&reach);
            assert_eq!((code, &*out), (0, "tried\n"), "{next} to {home}: {said}");
        }
    }
}

#[tokio::test]
async fn only_who_may_write_to_a_console_may_run_something() {
    let desk = Desk::new().await;
    desk.write_spec("web.yaml", "web", &json!({"command": ["sleep", "1000"]}));
    desk.wait_phase("web", "Running").await;
    let url = |query: &str| format!("ws://127.0.0.1:{}/v1/sandboxes/web/exec{query}", desk.port);
    let ticket = |read_only: u8| {
        let path = format!("/v1/sandboxes/web/ticket?read_only={read_only}");
        let desk = &desk;
        async move {
            let text = desk.post(&path, json!({})).await.json["ticket"].clone();
            format!("?ticket={}", text.as_str().unwrap())
        }
    };
    for refused in [String::new(), "?token=wrong".to_owned(), ticket(1).await] {
        let Err(Error::Http(answer)) = connect_async(url(&refused)).await else {
            panic!("let in with {refused:?}")
        };
        assert_eq!(answer.status(), 401, "{refused}");
    }
    for admitted in [format!("?token={TOKEN}"), ticket(0).await] {
        let (mut socket, _) = connect_async(url(&admitted)).await.unwrap();
        let heard = run(&mut socket, r#"{"command":["echo","hi"]}"#).await;
        assert_eq!(heard[0], r#"{"type":"started"}"#);
        assert_eq!(heard[1], "\u{1}hi\n");
        let exit: Value = serde_json::from_str(&heard[2]).unwrap();
        assert_eq!(exit, json!({"type": "exit", "code": 0, "signal": null}));
    }
    let (mut socket, _) = connect_async(url(&format!("?token={TOKEN}"))).await.unwrap();
    let heard = run(&mut socket, "{}").await;
    assert!(heard.concat().contains("names no program"), "{heard:?}");
}

/// Sends the first frame, and collects everything until the daemon hangs up.
async fn run<S>(socket: &mut tokio_tungstenite::WebSocketStream<S>, first: &str) -> Vec<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    socket.send(Message::Text(first.into())).await.unwrap();
    let mut heard = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) => heard.push(text.to_string()),
            Message::Binary(bytes) => heard.push(String::from_utf8(bytes.to_vec()).unwrap()),
            _ => (),
        }
    }
    heard
}

/// A client whose program is known to run.
async fn sleeper(desk: &Desk, name: &str) -> Child {
    let mut client = desk
        .command(&["exec", name, "--", "sh", "-c", "echo up; sleep 4242; true"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    client.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    client
}

/// Whether the sleeper is still there, as seen from inside.
fn sleeps(desk: &Desk, name: &str) -> bool {
    let look = "for dir in /proc/[0-9]*; do tr '\\0' ' ' < $dir/cmdline; echo; done 2>/dev/null";
    let (_, out, _) = desk.cli(&["exec", name, "--", "sh", "-c", look]);
    out.contains("echo up;")
}

fn files_of_programs(desk: &Desk) -> Vec<String> {
    let dirs = std::fs::read_dir(desk.path("run/i")).unwrap().flatten();
    let files = dirs.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten().flatten());
    let names = files.map(|file| file.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("exec-")).collect()
}

#[track_caller]
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read_until(master: &mut std::fs::File, seen: &mut String, text: &str) {
    use sodium_sys::poll::{self, Interest};
    let mut buffer = [0; 1024];
    while !seen.contains(text) {
        let master_fd = master.as_fd();
        poll::wait(&[Interest { fd: master_fd, read: true, write: false }]).unwrap();
        let count = master.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}
