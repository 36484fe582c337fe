//! Who takes what from whom: clients without a token, other users of the machine, a token that was replaced.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::desk::{Desk, PATIENCE, TOKEN};

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
async fn what_a_ticket_says_without_end_uses_up_nothing_of_the_tokens() {
    let bounds = json!({"requests_per_second_per_peer": 20});
    let desk = Desk::with(json!({"api": bounds})).await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["sleep", "1000"]}));
    desk.wait_phase("a", "Running").await;
    let made = desk.post("/v1/sandboxes/a/ticket?read_only=1", Value::Null).await.json;
    let ticket = made["ticket"].as_str().unwrap();
    let url = format!("ws://127.0.0.1:{}/console/a?ticket={ticket}", desk.port);
    let (socket, _) = connect_async(&url).await.unwrap();
    let (mut says, mut hears) = socket.split();
    let listening = tokio::spawn(async move { while hears.next().await.is_some() {} });
    let talking = tokio::spawn(async move {
        while says.send(Message::Text(r#"{"type":"stop"}"#.into())).await.is_ok() {}
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..60 {
        assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
    }
    talking.abort();
    listening.abort();
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
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            "4711",
            "--regid",
            "4711",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            script,
        ])
        .arg(&socket)
        .arg(TOKEN)
        .output()
        .unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403"), "{output:?}");
    assert!(answer.contains("forbidden") && answer.contains("uid 4711"), "{answer}");
}

/// Where the daemon is not root, a plain process is the same user, and nothing but the daemon itself stands before its
/// socket.
#[tokio::test]
async fn the_local_socket_serves_nobody_in_a_sandbox_whoever_they_are() {
    let desk = Desk::rootless().await;
    let script = "import os, socket, sys, time\n\
        def ask():\n\
        \x20   s.sendall(b'GET /v1/sandboxes HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n')\n\
        \x20   print('answer', s.makefile().readline().strip(), flush=True)\n\
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); ask()\n\
        s = socket.socket(socket.AF_UNIX)\n\
        if os.fork() == 0: s.connect(sys.argv[1]); os._exit(0)\n\
        os.wait(); ask(); print('asked', flush=True); time.sleep(1000)";
    let socket = desk.path("run/sodiumd.sock");
    let command = json!(["/usr/bin/python3", "-c", script, socket]);
    desk.write_spec("a.yaml", "a", &json!({"isolation": "process", "command": command}));
    let logs = desk.wait_logs("a", "asked").await;
    assert_eq!(logs.matches("answer HTTP/1.1 403").count(), 2, "{logs}");
    // A program of exec's descends from no shim.
    let script = script.replace("; time.sleep(1000)", "");
    let socket = socket.to_str().unwrap();
    let (_, out, err) = desk.cli(&["exec", "a", "--", "/usr/bin/python3", "-c", &script, socket]);
    assert_eq!(out.matches("answer HTTP/1.1 403").count(), 2, "{out}{err}");
    assert_eq!(desk.cli(&["get"]).0, 0);
}

#[tokio::test]
async fn websockets_count_as_connections_until_they_end() {
    for key in ["connections_max", "connections_per_peer_max"] {
        let desk = Desk::with(json!({"api": {key: 10}})).await;
        desk.write_spec("a.yaml", "a", &json!({"command": ["sleep", "1000"]}));
        // Over the local socket, which keeps no place of those that are counted.
        let deadline = Instant::now() + PATIENCE;
        while desk.cli(&["exec", "a", "--", "true"]).0 != 0 {
            assert!(Instant::now() < deadline, "{}", desk.log());
        }
        let mut open = Vec::new();
        let mut refused = 0;
        for n in 0..60 {
            let path = ["console/a", "v1/sandboxes/a/exec"][n % 2];
            let url = format!("ws://127.0.0.1:{}/{path}?token={TOKEN}", desk.port);
            match connect_async(url).await {
                Ok((socket, _)) => open.push(socket),
                Err(Error::Http(answer)) => {
                    assert_eq!(answer.status(), 503);
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!((open.len(), refused), (10, 50), "{key}");
        assert_eq!(desk.get("/v1/sandboxes").await.status, 503);
        assert_eq!(desk.cli(&["exec", "a", "--", "true"]).0, 0);
        drop(open);
        let deadline = Instant::now() + PATIENCE;
        while desk.get("/v1/sandboxes").await.status != 200 {
            assert!(Instant::now() < deadline, "places are not free again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn connections_that_show_nothing_keep_nobody_out() {
    let desk = Desk::with(json!({"api": {"connections_max": 20}})).await;
    let (port, ended) = (desk.port, Arc::new(AtomicBool::new(false)));
    let connect = move || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let idle: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    let flood = {
        let ended = Arc::clone(&ended);
        std::thread::spawn(move || {
            let mut held = std::collections::VecDeque::new();
            while !ended.load(Ordering::Relaxed) {
                held.push_back(connect());
                if held.len() > 200 {
                    held.pop_front();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let watch = format!("http://127.0.0.1:{port}/v1/sandboxes?watch=1");
    let client = reqwest::Client::new();
    let watching = client.get(&watch).bearer_auth(TOKEN).send().await.unwrap();
    for _ in 0..50 {
        assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
    }
    assert_eq!(desk.cli(&["get"]).0, 0);
    // One that has shown the token is not closed for those that have not.
    let mut watching = watching;
    desk.write_spec("a.yaml", "a", &json!({"command": ["true"], "state": "stopped"}));
    let line = tokio::time::timeout(PATIENCE, watching.chunk()).await.unwrap().unwrap();
    assert!(line.is_some());
    ended.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    drop(idle);
}

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

async fn websocket(desk: &Desk, path: &str) -> Result<Socket, u16> {
    match connect_async(format!("ws://127.0.0.1:{}/{path}", desk.port)).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// The code that a WebSocket is closed with.
async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(close)))) => return close.code.into(),
            Some(Ok(_)) => (),
            other => panic!("{other:?}"),
        }
    }
}

fn replace_token(desk: &Desk, token: &str) {
    let path = desk.path("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["token"] = json!(token);
    fs::write(&path, config.to_string()).unwrap();
    let pid = desk.daemon.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

async fn ticket(desk: &Desk) -> String {
    let answer = desk.post("/v1/sandboxes/a/ticket", Value::Null).await;
    answer.json["ticket"].as_str().unwrap().to_owned()
}

/// Whether a program with this argument runs anywhere.
fn runs(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\0")
            && line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

#[tokio::test]
async fn what_a_token_opened_ends_within_a_second_of_the_token() {
    let desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["cat"], "limits": {"timeout_seconds": 0}}));
    desk.wait_phase("a", "Running").await;
    let (unused, used) = (ticket(&desk).await, ticket(&desk).await);
    let mut console = websocket(&desk, &format!("console/a?token={TOKEN}")).await.unwrap();
    // However the path is written, nobody is let in whose ticket was not looked at for what it is.
    for path in ["console/%61", "console//a", "console/a/", "v1/sandboxes/%61/exec"] {
        assert!(websocket(&desk, &format!("{path}?ticket={used}")).await.is_err(), "{path}");
    }
    let mut by_ticket = websocket(&desk, &format!("console/a?ticket={used}")).await.unwrap();
    let exec = format!("v1/sandboxes/a/exec?token={TOKEN}");
    let mut exec = websocket(&desk, &exec).await.unwrap();
    exec.send(Message::text(json!({"command": ["sleep", "98761"]}).to_string())).await.unwrap();
    exec.next().await.unwrap().unwrap();
    let client = reqwest::Client::new();
    let mut streams = Vec::new();
    for path in [
        "/v1/sandboxes?watch=1",
        "/v1/events?follow=1",
        "/v1/sandboxes/a/logs?follow=1",
        "/v1/sandboxes/a/logs?follow=1&format=json",
    ] {
        let sent = client.get(desk.url(path)).bearer_auth(TOKEN).send().await.unwrap();
        streams.push((path, sent));
    }
    let long = client.post(desk.url("/v1/sandboxes/a/exec")).bearer_auth(TOKEN);
    let long = long.body(json!({"command": ["sleep", "98762"]}).to_string()).send();
    let long = tokio::spawn(long);
    let mut local = desk
        .command(&["exec", "a", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (local.stdin.take().unwrap(), local.stdout.take().unwrap());
    let mut output = BufReader::new(output).lines();
    let mut echo = |text: &str| {
        writeln!(input, "{text}").unwrap();
        output.next().unwrap().unwrap()
    };
    assert_eq!(echo("one"), "one");
    let deadline = Instant::now() + PATIENCE;
    while !runs("98761") || !runs("98762") {
        assert!(Instant::now() < deadline, "{}", desk.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    replace_token(&desk, "another");
    while desk.ask_as(Some("another"), "GET", "/v1/sandboxes", "").await.status != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for socket in [&mut console, &mut by_ticket, &mut exec] {
        assert_eq!(close_code(socket).await, 4003);
    }
    for (path, stream) in streams {
        let rest = tokio::time::timeout(PATIENCE, stream.text()).await.unwrap().unwrap();
        assert!(rest.lines().last().unwrap().contains("the token was replaced"), "{path}: {rest}");
    }
    let answer = tokio::time::timeout(PATIENCE, long).await.unwrap().unwrap();
    assert!(answer.is_err_and(|error| error.status().is_none()), "it was answered");
    let deadline = Instant::now() + PATIENCE;
    while runs("98761") || runs("98762") {
        assert!(Instant::now() < deadline, "programs go on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(websocket(&desk, &format!("console/a?ticket={unused}")).await.unwrap_err(), 401);
    assert_eq!(desk.get("/v1/sandboxes").await.status, 401);
    // The owner of the machine needs no token.
    assert_eq!(echo("two"), "two");
    // Nor does reading the same token again end anything.
    let url = "console/a?token=another";
    let mut console = websocket(&desk, url).await.unwrap();
    replace_token(&desk, "another");
    console
        .send(Message::text(json!({"type": "input", "content": "three"}).to_string()))
        .await
        .unwrap();
    let heard = async {
        while let Some(Ok(message)) = console.next().await {
            if message.to_text().is_ok_and(|text| text.contains("three")) {
                return;
            }
        }
        panic!("closed");
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
    drop(input);
    assert!(local.wait().unwrap().success());
}

#[tokio::test]
async fn a_port_that_a_tenant_took_keeps_nobody_from_being_adopted() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = json!({"port": port, "network": {"enabled": true}});
    let mut desk = Desk::with(config).await;
    let thief = "import socket, sys, time\n\
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
        while True:\n \
            try: s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); break\n \
            except OSError: time.sleep(0.01)\n\
        time.sleep(1000)";
    let limits = json!({"timeout_seconds": 0});
    let spec = json!({"command": ["python3", "-c", thief, port.to_string()], "network": "host",
        "limits": limits});
    desk.write_spec("thief.yaml", "thief", &spec);
    desk.write_spec("a.yaml", "a", &json!({"command": ["sleep", "1000"], "limits": limits}));
    desk.wait_phase("thief", "Running").await;
    let a = desk.wait_phase("a", "Running").await;
    desk.kill();
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody took the port");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    desk.daemon = Some(desk.spawn());
    let by_socket = async |path: &str| {
        let client = reqwest::Client::builder().unix_socket(desk.path("run/sodiumd.sock")).build();
        let sent = client.unwrap().get(format!("http://sodiumd{path}")).send().await.ok()?;
        sent.json::<Value>().await.ok()
    };
    // Everything is as it was, over the local socket.
    let pid = |one: &Value| one["status"]["instance"]["pid"].clone();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = by_socket("/v1/sandboxes/a").await.unwrap_or_default();
        if seen["status"]["phase"] == "Running" && pid(&seen) == pid(&a) {
            break;
        }
        assert!(Instant::now() < deadline, "{seen:#}\n{}", desk.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (code, said, error) = desk.cli(&["exec", "a", "--", "echo", "inside"]);
    assert_eq!((code, said.as_str()), (0, "inside\n"), "{error}");
    // It is said who has the port and what to do, in the log, in the events and by the doctor.
    let log = desk.log();
    assert!(log.contains("is taken by the sandbox thief"), "{log}");
    let health = by_socket("/health").await.unwrap();
    assert_eq!((&health["status"], &health["address"]), (&json!("degraded"), &Value::Null));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = by_socket("/v1/events").await.unwrap().to_string();
        if events.contains("ApiUnreachable") && events.contains("sodiumd stop thief") {
            break;
        }
        assert!(Instant::now() < deadline, "{events}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let findings = desk.cli(&["doctor", "-o", "json"]).1;
    assert!(findings.contains("is taken by pid"), "{findings}");
    assert_eq!(desk.cli(&["stop", "thief"]).0, 0);
    let client = reqwest::Client::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = client.get(desk.url("/v1/events")).bearer_auth(TOKEN).send().await;
        if let Ok(answer) = asked {
            assert!(answer.text().await.unwrap().contains("ApiListening"));
            break;
        }
        assert!(Instant::now() < deadline, "{}", desk.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(desk.get("/health").await.json["status"], "ok");
}

#[tokio::test]
async fn events_say_who_did_what_and_repeat_themselves_in_numbers() {
    let mut desk = Desk::new().await;
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": "a"},
        "spec": {"command": ["cat"], "limits": {"timeout_seconds": 0}}});
    assert_eq!(desk.ask("PUT", "/v1/sandboxes/a", &document.to_string()).await.status, 201);
    desk.wait_phase("a", "Running").await;
    let told = async |desk: &Desk, reason: &str| {
        let events = desk.get("/v1/events?sandbox=a").await.json;
        let events = events["items"].as_array().unwrap().clone();
        let told = events.into_iter().filter(|event| event["reason"] == reason);
        told.map(|event| event["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + PATIENCE;
    for n in 0..20 {
        let asked = json!({"command": ["echo", "a-secret"]});
        assert_eq!(desk.post("/v1/sandboxes/a/exec", asked).await.status, 200);
        while n == 0 && told(&desk, "ExecStarted").await.is_empty() {
            assert!(Instant::now() < deadline, "{}", desk.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let ticket = ticket(&desk).await;
    let url = format!("console/a?ticket={ticket}");
    let mut console = websocket(&desk, &url).await.unwrap();
    for content in ["one", "two"] {
        let input = json!({"type": "input", "content": content}).to_string();
        console.send(Message::text(input)).await.unwrap();
    }
    desk.wait_logs("a", "two").await;
    assert_eq!(desk.cli(&["exec", "a", "--", "true"]).0, 0);
    assert_eq!(desk.post("/v1/sandboxes/a/restart", Value::Null).await.status, 200);
    assert_eq!(desk.cli(&["stop", "a"]).0, 0);
    while told(&desk, "ExecStarted").await.len() < 2 || told(&desk, "InputSent").await.is_empty() {
        assert!(Instant::now() < deadline, "{:?}", told(&desk, "ExecStarted").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (id, uid) = (&ticket[..8], fs::metadata("/proc/self").unwrap().uid());
    let by_ticket = format!("(ticket {id} from 127.0.0.1)");
    let by_owner = format!("(local uid={uid})");
    let created = told(&desk, "Created").await.remove(0);
    let (_, token) = created.split_once("declared by api ").unwrap();
    assert!(token.starts_with("(token ") && token.ends_with(" from 127.0.0.1)"), "{created}");
    let ran = told(&desk, "ExecStarted").await;
    assert_eq!(ran[0], format!("\"echo\" was run by exec {token}"));
    assert_eq!(ran[1..], [format!("\"true\" was run by exec {by_owner}")]);
    let issued = told(&desk, "TicketIssued").await;
    assert_eq!(issued, [format!("ticket {id} was made, for everything {token}")]);
    let used = told(&desk, "TicketUsed").await;
    assert!(used.len() == 1 && used[0].ends_with(&by_ticket), "{used:?}");
    assert!(used[0].contains(token.trim_matches(['(', ')'])), "{used:?}");
    let input = told(&desk, "InputSent").await;
    assert_eq!(input, [format!("input was sent over a console {by_ticket}")]);
    assert!(told(&desk, "RestartRequested").await[0].ends_with(token));
    assert!(told(&desk, "StopRequested").await[0].ends_with(&by_owner));
    // What was only counted is told before the daemon ends.
    let mut daemon = desk.daemon.take().unwrap();
    Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status().unwrap();
    assert!(daemon.wait().unwrap().success());
    desk.start().await;
    let ran = told(&desk, "ExecStarted").await;
    assert_eq!(ran[2..], [format!("19 times, at last: \"echo\" was run by exec {token}")]);
    let all = desk.get("/v1/events").await.json.to_string();
    assert!(!all.contains(TOKEN) && !all.contains(&ticket) && !all.contains("a-secret"), "{all}");
}
