//! A new daemon over what an older one has started, and the orderly ends of a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::desk::{Desk, PATIENCE, TOKEN};

/// A shim of another age: it answers every greeting with the same refusal.
const FOREIGN: &str = "import json, os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
print('listens', flush=True)
said = json.dumps({'type': 'error', 'code': 'unsupported_version', 'message': 'it speaks 7 to 9'}).encode()
kept = []
while True:
    peer, _ = listener.accept()
    peer.recv(4096)
    peer.sendall(struct.pack('<I', len(said) + 1) + b'\\x01' + said)
    kept = kept[-20:] + [peer]
";

struct Foreign(Child);

impl Foreign {
    /// Takes the place of the shim at this instance's socket.
    fn at(desk: &Desk, iid: &str) -> Self {
        let dir = desk.path("run/i").join(iid);
        fs::rename(dir.join("sock"), dir.join("theirs")).unwrap();
        let mut child = Command::new("python3")
            .args(["-c", FOREIGN, dir.join("sock").to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 7];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Self(child)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn instance(sandbox: &Value) -> (String, u64) {
    let instance = &sandbox["status"]["instance"];
    (instance["iid"].as_str().unwrap().to_owned(), instance["pid"].as_u64().unwrap())
}

#[tokio::test]
async fn a_shim_that_cannot_be_spoken_to_is_left_to_its_work_and_its_sandbox_still_obeys() {
    let mut desk = Desk::new().await;
    let spec = json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0},
        "stop": {"grace": "1s"}});
    for name in ["a", "b"] {
        desk.write_spec(&format!("{name}.yaml"), name, &spec);
    }
    let a = instance(&desk.wait_phase("a", "Running").await);
    let b = instance(&desk.wait_phase("b", "Running").await);
    desk.kill();
    let _foreign = [Foreign::at(&desk, &a.0), Foreign::at(&desk, &b.0)];
    desk.start().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(instance(&desk.wait_phase("a", "Running").await), a);
    let stopped = desk.post("/v1/sandboxes/a/stop?wait=20s", Value::Null).await;
    assert_eq!(stopped.status, 200, "{stopped:?}\n{}", desk.log());
    let ended = desk.wait_phase("a", "Stopped").await;
    assert_eq!(ended["status"]["last_exit"]["signal"], "SIGTERM", "{ended:#}");
    assert_eq!(desk.post("/v1/sandboxes/b/kill?wait=20s", Value::Null).await.status, 200);
    // Nothing of them stays, and they start again, under a shim of ours.
    assert_eq!(desk.post("/v1/sandboxes/a/start?wait=20s", Value::Null).await.status, 200);
    let again = instance(&desk.wait_phase("a", "Running").await);
    assert_ne!(again, a);
    assert_eq!(fs::read_dir(desk.path("run/i")).unwrap().count(), 1, "{}", desk.log());
}

/// A service manager with one daemon.
struct Manager {
    program: Child,
    said: Receiver<String>,
}

impl Manager {
    fn new(desk: &Desk) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/manager.py");
        let mut program = Command::new("python3")
            .args(["-B", script])
            .arg(desk.dir.path())
            .args([env!("CARGO_BIN_EXE_sodiumd"), "--config"])
            .arg(desk.path("config.json"))
            .arg("run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let (sender, said) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        Self { program, said }
    }

    fn order(&mut self, command: &str) {
        writeln!(self.program.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Everything that is said up to the first line that begins so.
    #[track_caller]
    fn hear(&self, wanted: &str) -> Vec<String> {
        let (deadline, mut heard) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left);
            heard.push(line.unwrap_or_else(|_| panic!("{wanted} was not said, but {heard:?}")));
            if heard.last().unwrap().starts_with(wanted) {
                return heard;
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        self.program.wait().unwrap();
    }
}

#[tokio::test]
async fn under_a_service_manager_nobody_who_connects_is_refused_while_the_daemon_is_replaced() {
    let mut desk = Desk::prepared(json!({}));
    desk.write_spec(
        "a.yaml",
        "a",
        &json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}}),
    );
    let mut manager = Manager::new(&desk);
    manager.order("start");
    assert!(manager.hear("READY=1").contains(&"FDSTORE=1".to_owned()));
    desk.port = port(&desk.log());
    let a = instance(&desk.wait_phase("a", "Running").await);
    for _ in 0..3 {
        manager.hear("WATCHDOG=1");
    }
    manager.order("hup");
    let reloading = manager.hear("RELOADING=1");
    assert!(!reloading.contains(&"READY=1".to_owned()));
    manager.hear("MONOTONIC_USEC=");
    manager.hear("READY=1");
    manager.order("kill");
    manager.hear("killed");
    // Nobody serves, and whoever asks waits.
    let mut early = TcpStream::connect(("127.0.0.1", desk.port)).unwrap();
    let request = format!(
        "GET /v1/sandboxes/a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    );
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.write_all(request.as_bytes()).unwrap();
    manager.order("start");
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(instance(&desk.wait_phase("a", "Running").await), a);
    manager.order("term");
    manager.hear("STOPPING=1");
    manager.hear("ended");
    // What runs is not the daemon's to end.
    assert!(fs::read_to_string(format!("/proc/{}/cmdline", a.1)).unwrap().starts_with("sleep"));
}

fn port(log: &str) -> u16 {
    let (_, rest) = log.split_once("http://127.0.0.1:").unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[tokio::test]
async fn a_drained_host_runs_nothing_across_restarts_and_then_everything_again() {
    let mut desk = Desk::new().await;
    let spec = json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}});
    for name in ["a", "b"] {
        desk.write_spec(&format!("{name}.yaml"), name, &spec);
    }
    desk.wait_phase("a", "Running").await;
    desk.wait_phase("b", "Running").await;
    let (code, said, error) = desk.cli(&["drain", "-o", "json"]);
    assert_eq!(code, 0, "{error}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["drained"], &said["running"]), (&json!(true), &json!(0)));
    assert_eq!(fs::read_dir(desk.path("run/i")).unwrap().count(), 0);
    let a = desk.wait_phase("a", "Stopped").await;
    assert_eq!(a["status"]["last_exit"]["reason"], "drained");
    desk.kill();
    desk.start().await;
    // What is declared or asked for meanwhile waits, and says why.
    desk.write_spec("c.yaml", "c", &spec);
    desk.wait_phase("c", "Stopped").await;
    let refused = desk.post("/v1/sandboxes/a/start?wait=20s", Value::Null).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.json["error"].as_str().unwrap().contains("undrain"), "{refused:?}");
    assert_eq!(desk.get("/health").await.json["drained"], true);
    assert_eq!(desk.cli(&["undrain"]).0, 0);
    for name in ["a", "b", "c"] {
        let one = desk.wait_phase(name, "Running").await;
        assert_eq!(one["status"]["failures"].as_u64().unwrap_or(0), 0, "{one:#}");
    }
}

#[tokio::test]
async fn a_hangup_has_the_configuration_read_again_and_a_bad_one_changes_nothing() {
    let mut desk = Desk::new().await;
    let hang_up = |desk: &Desk| {
        let pid = desk.daemon.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    let images = desk.path("images");
    fs::create_dir(&images).unwrap();
    let text = fs::read_to_string(desk.path("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["images_path"] = json!(images);
    desk.write_spec("a.yaml", "a", &json!({"image": "mine"}));
    let faulty = async |desk: &Desk| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let files = desk.get("/v1/files").await.json;
            if files.to_string().contains("mine") && !files["items"][0]["faults"].is_null() {
                return;
            }
            assert!(Instant::now() < deadline, "{files}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    faulty(&desk).await;
    // An image, a token, a default and a bound that are new; a port that waits.
    let image = json!({"id": "mine", "name": "", "runtime": "bash", "startup": "sleep 1000"});
    fs::write(images.join("mine.json"), image.to_string()).unwrap();
    config["token"] = json!("another");
    config["default_limits"] = json!({"memory_mb": 99, "timeout_seconds": 0});
    config["port"] = json!(1);
    fs::write(desk.path("config.json"), config.to_string()).unwrap();
    hang_up(&desk);
    let deadline = Instant::now() + PATIENCE;
    while desk.ask_as(Some("another"), "GET", "/v1/sandboxes", "").await.status != 200 {
        assert!(Instant::now() < deadline, "{}", desk.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(desk.get("/v1/sandboxes").await.status, 401);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let a = desk.ask_as(Some("another"), "GET", "/v1/sandboxes/a", "").await.json;
        if a["status"]["phase"] == "Running" {
            assert_eq!(a["spec"]["limits"]["memory_mb"], 99);
            break;
        }
        assert!(Instant::now() < deadline, "{a:#}\n{}", desk.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(desk.log().contains("restart required for these keys keys=\"port\""), "{}", desk.log());
    fs::write(desk.path("config.json"), "{\"prot\": 1}").unwrap();
    hang_up(&desk);
    let deadline = Instant::now() + PATIENCE;
    while !desk.log().contains("keeping the current configuration") {
        assert!(Instant::now() < deadline, "{}", desk.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(desk.ask_as(Some("another"), "GET", "/v1/sandboxes", "").await.status, 200);
    desk.kill();
}
