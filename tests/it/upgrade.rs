//! A new daemon over what an older one has started, and the orderly ends of a daemon.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::desk::Desk;

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
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
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
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
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
