//! Who takes what from whom: clients without a token, other users of the machine, a token that was replaced.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::desk::{Desk, TOKEN};

#[tokio::test]
async fn requests_without_a_token_use_up_nothing_of_those_with_one() {
    let bounds = json!({"requests_per_second": 4, "requests_per_second_per_peer": 4,
        "anonymous_per_second_per_peer": 4});
    let desk = Desk::with(json!({"api": bounds})).await;
    let mut statuses = Vec::new();
    for n in 0..60 {
        let token = [None, Some("wrong")][n % 2];
        statuses.push(desk.ask_as(token, "GET", "/v1/sandboxes", "").await.status);
    }
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!((20..=40).contains(&refused), "{statuses:?}");
    // Nor is there more of what is there for everybody.
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(desk.ask_as(None, "GET", "/no/such/path", "").await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    for _ in 0..15 {
        assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
    }
    assert_eq!(desk.cli(&["get"]).0, 0);
}

#[tokio::test]
async fn the_local_socket_is_its_owners_whatever_the_umask_and_the_mode_is() {
    let mut desk = Desk::prepared(json!({}));
    desk.within = vec!["sh", "-c", "umask 0; exec \"$@\"", "sh"];
    desk.start().await;
    let socket = desk.path("run/sodiumd.sock");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    assert_eq!(desk.cli(&["get"]).0, 0);
    // Even if somebody opens the way to it, the daemon knows who comes.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.sendall(b'GET /v1/sandboxes HTTP/1.1\\r\\nHost: a\\r\\nAuthorization: Bearer '\n\
        + sys.argv[2].encode() + b'\\r\\nConnection: close\\r\\n\\r\\n')\n\
        print(s.makefile().read())";
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "4711", "--regid", "4711", "--clear-groups", "python3", "-c", script])
        .arg(&socket)
        .arg(TOKEN)
        .output()
        .unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403"), "{output:?}");
    assert!(answer.contains("forbidden") && answer.contains("uid 4711"), "{answer}");
}
