//! Every bound of the API, exceeded: what its client is told, and that everybody else is served.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::desk::{Answer, Desk, PATIENCE, TOKEN};

/// What opens a WebSocket, beside the first line.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn connect(desk: &Desk) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", desk.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything that comes until the other end closes; a reset is a close too.
fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n{more}\r\n")
}

/// What a request on a connection of its own is answered, headers and all.
fn exchange(desk: &Desk, text: &str) -> String {
    let mut stream = connect(desk);
    stream.write_all(text.as_bytes()).unwrap();
    read_all(&mut stream)
}

/// A connection that has shown the token, and is kept.
fn seated(desk: &Desk) -> TcpStream {
    let mut stream = connect(desk);
    stream.write_all(head("GET", "/healthz", "").as_bytes()).unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 200");
    stream
}

async fn bounded(bounds: Value) -> Desk {
    Desk::with(json!({"api": bounds})).await
}

#[tokio::test]
async fn connections_beyond_the_most_are_told_so_and_closed() {
    for key in ["connections_max", "connections_per_peer_max"] {
        let desk = bounded(json!({key: 5})).await;
        // Whoever has shown nothing takes no place of those who have.
        let strangers: Vec<TcpStream> = (0..50).map(|_| connect(&desk)).collect();
        let idle: Vec<TcpStream> = (0..5).map(|_| seated(&desk)).collect();
        let answer = exchange(&desk, &head("GET", "/v1/sandboxes", ""));
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too_many"), "{answer}");
        // The owner's socket has places of its own.
        assert_eq!(desk.cli(&["get"]).0, 0);
        drop((idle, strangers));
        let deadline = Instant::now() + PATIENCE;
        while !exchange(&desk, &head("GET", "/v1/sandboxes", "Connection: close\r\n"))
            .starts_with("HTTP/1.1 200")
        {
            assert!(Instant::now() < deadline, "nobody is served any more");
        }
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    for key in ["requests_per_second", "requests_per_second_per_peer"] {
        let desk = bounded(json!({key: 4})).await;
        let mut refused = None;
        for n in 0..60 {
            let answer = desk.get("/v1/sandboxes").await;
            if answer.status == 429 {
                refused = Some((n, answer));
                break;
            }
        }
        let (served, answer) = refused.unwrap();
        assert!((20..40).contains(&served), "{served}");
        assert_eq!(answer.json["code"], "rate_limited", "{answer:?}");
        let raw = exchange(&desk, &head("GET", "/v1/sandboxes", "Connection: close\r\n"));
        assert!(raw.contains("retry-after: 1"), "{raw}");
        // Without a token nobody uses up the token's share.
        if key == "requests_per_second" {
            for _ in 0..60 {
                assert_eq!(desk.ask_as(Some("x"), "GET", "/v1/sandboxes", "").await.status, 401);
            }
        }
        // The owner is served, and everybody is a little later.
        assert_eq!(desk.cli(&["get"]).0, 0);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
    }
}

#[tokio::test]
async fn consoles_and_exec_sockets_count_among_the_requests_of_their_token() {
    let bounds = json!({"requests_per_second": 1, "requests_per_second_per_peer": 0});
    let desk = bounded(bounds).await;
    let in_head = format!("Authorization: Bearer {TOKEN}\r\n");
    let in_query = format!("?token={TOKEN}");
    for path in ["/console/a", "/v1/sandboxes/a/exec"] {
        for (query, header) in [("", &*in_head), (&*in_query, "")] {
            let open = || {
                let mut stream = connect(&desk);
                let head =
                    format!("GET {path}{query} HTTP/1.1\r\nHost: a\r\n{header}{UPGRADE}\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let mut line = [0; 12];
                stream.read_exact(&mut line).unwrap();
                String::from_utf8_lossy(&line).into_owned()
            };
            // There is no such sandbox, which is found out for who may ask that often.
            let answers: Vec<String> = (0..60).map(|_| open()).collect();
            let too_fast = answers.iter().any(|line| line == "HTTP/1.1 429");
            assert!(too_fast, "{path}{query}: {answers:?}");
        }
    }
}

#[tokio::test]
async fn a_head_or_a_body_that_does_not_come_is_not_waited_for() {
    let desk = bounded(json!({"head_within": "300ms", "body_within": "300ms"})).await;
    let mut silent = connect(&desk);
    assert_eq!(read_all(&mut silent), "");
    // A byte now and then is no head either.
    let mut slow = connect(&desk);
    let mut sent = 0;
    while slow.write_all(b"G").is_ok() && sent < 100 {
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sent < 100, "still there after {sent} bytes");
    // One that was served may ask again for so long, and no longer.
    let mut kept = connect(&desk);
    kept.write_all(head("GET", "/healthz", "").as_bytes()).unwrap();
    assert!(read_all(&mut kept).starts_with("HTTP/1.1 200"));
    let put = head("PUT", "/v1/sandboxes/a", "Content-Length: 100\r\n");
    let answer = exchange(&desk, &format!("{put}{{\"api"));
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"), "{answer}");
    // Of those who may not ask, no body is waited for.
    let stranger = put.replace(TOKEN, "another");
    let answer = exchange(&desk, &format!("{stranger}{{\"api"));
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
}

#[tokio::test]
async fn a_head_or_a_body_that_is_too_large_is_refused() {
    let desk = Desk::new().await;
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = format!("X: {}\r\n", "y".repeat(64 << 10));
    for more in [many, long] {
        let answer = exchange(&desk, &head("GET", "/v1/sandboxes", &more));
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let large = "x".repeat((4 << 20) + 1);
    let answer = desk.ask("PUT", "/v1/sandboxes/a", &large).await;
    assert_eq!((answer.status, &answer.json["code"]), (413, &json!("too_large")));
    // Nor does it help not to say how much it will be.
    let put = head("PUT", "/v1/sandboxes/a", "Transfer-Encoding: chunked\r\nConnection: close\r\n");
    let mut stream = connect(&desk);
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    let _ = stream.write_all(format!("{put}{}", chunk.repeat(5)).as_bytes());
    let answer = read_all(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(desk.get("/v1/sandboxes").await.status, 200);
}

/// A document that declares `a`.
fn document(spec: Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "a"},
        "spec": spec})
}

/// Bytes of an answer, its head aside.
fn length(answer: &Answer) -> usize {
    answer.json.to_string().len()
}

#[tokio::test]
async fn faults_are_told_in_so_many_bytes_however_many_there_are() {
    let desk = Desk::new().await;
    let words = document(json!({"command": vec![1; 1_500_000]}));
    let quoted =
        document(json!({"isolation": "\u{9b}é".repeat(500_000), ("k".repeat(1 << 20)): 1}));
    for body in [&words, &quoted] {
        let answer = desk.ask("PUT", "/v1/sandboxes/a", &body.to_string()).await;
        assert_eq!((answer.status, &answer.json["code"]), (422, &json!("invalid")));
        assert!(length(&answer) < 64 << 10, "{}", length(&answer));
        assert!(!answer.json.to_string().contains('\u{9b}'));
    }
    let answer = desk.ask("PUT", "/v1/sandboxes/a", &words.to_string()).await;
    let violations = answer.json["violations"].as_array().unwrap();
    assert_eq!(violations.len(), 51);
    assert_eq!(violations[50]["message"], "and 1499950 more");
    // The first daemon's paths, and a text of several documents.
    let flat = json!({"startup": 1, ("x".repeat(1 << 20)): 1});
    let answer = desk.post("/sandboxes", flat).await;
    assert_eq!(answer.status, 422);
    assert!(length(&answer) < 64 << 10, "{}", length(&answer));
    let one = format!("---\n{}\n", document(json!({"command": vec![1; 250]})));
    let answer = desk.ask("POST", "/v1/apply", &one.repeat(60)).await;
    assert_eq!(answer.json["violations"][50]["message"], "and 14950 more", "{answer:?}");
    assert!(length(&answer) < 64 << 10, "{}", length(&answer));
    // And so is what is kept of a file.
    desk.write_spec("a.yaml", "a", &json!({"command": vec![1; 15_000]}));
    let deadline = Instant::now() + PATIENCE;
    while length(&desk.get("/v1/files").await) < 1_000 {
        assert!(Instant::now() < deadline, "the file is not known to be wrong");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(length(&desk.get("/v1/files").await) < 64 << 10);
}

#[tokio::test]
async fn events_are_bounded_in_bytes() {
    let desk = Desk::new().await;
    let names = |mark: &str| -> serde_json::Map<String, Value> {
        (0..1_000).map(|n| (format!("{mark}{n}{}", "N".repeat(300)), json!("x"))).collect()
    };
    for mark in ["A", "B"] {
        let spec = json!({"command": ["true"], "state": "stopped", "env": names(mark)});
        let put = desk.ask("PUT", "/v1/sandboxes/a", &document(spec).to_string()).await;
        assert!(put.status < 300, "{put:?}");
    }
    desk.write_spec("wrong.yaml", "b", &json!({"command": vec![1; 15_000]}));
    let deadline = Instant::now() + PATIENCE;
    let events = loop {
        let events = desk.get("/v1/events").await.json["items"].as_array().unwrap().clone();
        if events.iter().any(|event| event["reason"] == "InvalidFile") {
            break events;
        }
        assert!(Instant::now() < deadline, "{events:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(events.iter().any(|event| event["reason"] == "Changed"), "{events:?}");
    for event in events {
        let message = event["message"].as_str().unwrap();
        assert!(message.len() <= 1 << 10, "{} bytes of {}", message.len(), event["reason"]);
    }
    let explained = desk.get("/v1/sandboxes/a/explain").await;
    assert!(length(&explained) < 64 << 10, "{}", length(&explained));
}

#[tokio::test]
async fn nothing_that_others_wrote_reaches_the_terminal_of_an_operator() {
    let odd = |found: char| {
        found.is_control() && found != '\n' || matches!(found, '\u{202a}'..='\u{202e}')
    };
    let desk = Desk::new().await;
    let evil = "\u{1b}[2J\u{9b}31m\u{202e}";
    // What YAML takes of it.
    let said = "\u{1b}[2J\u{202e}";
    desk.write_spec(&format!("x{evil}.yaml"), "x", &json!({"command": 1}));
    desk.write_spec(&format!("y{evil}.yaml"), "y", &json!({"command": ["true"]}));
    desk.wait_phase("y", "Completed").await;
    desk.write_spec("z.yaml", "y", &json!({"command": ["false"]}));
    let spec = json!({"command": ["bash", "-c", "echo \"$0\"; exit 3", said],
        "restart": {"policy": "never"}, "env": {(format!("A{said}")): "x"}});
    desk.write_spec("a.yaml", "a", &spec);
    desk.wait_phase("a", "Failed").await;
    let missing = json!({"command": [format!("/no/{said}")], "restart": {"policy": "never"}});
    desk.write_spec("b.yaml", "b", &missing);
    desk.wait_phase("b", "Failed").await;
    // One with a fault is told when it was seen twice: it could have been half written.
    let told = format!("x{evil}.yaml");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = desk.get("/v1/files").await.json;
        let mut items = files["items"].as_array().into_iter().flatten();
        if items.any(|one| one["path"] == *told) {
            break;
        }
        assert!(Instant::now() < deadline, "{files:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let spec = desk.path("c.yaml");
    std::fs::write(&spec, document(json!({"isolation": said})).to_string()).unwrap();
    let spec = spec.to_str().unwrap();
    for words in [
        &["get"][..],
        &["get", "files"],
        &["get", "a"],
        &["get", "b"],
        &["get", "y"],
        &["get", "b", "-o", "yaml"],
        &["get", "files", "-o", "yaml"],
        &["events"],
        &["events", "-o", "json"],
        &["explain", "a"],
        &["explain", "b"],
        &["explain", "y"],
        &["explain", "a", "-o", "json"],
        &["plan"],
        &["apply", "-f", spec],
        &["check", spec],
        &["start", evil],
    ] {
        let (_, out, err) = desk.cli(words);
        assert!(!out.contains(odd) && !err.contains(odd), "{words:?}: {out:?} {err:?}");
        assert!(!out.is_empty() || !err.is_empty(), "{words:?} says nothing");
    }
    // Programs are told what it is, and a console is as it is.
    let files: Value = serde_json::from_str(&desk.cli(&["get", "files", "-o", "json"]).1).unwrap();
    let paths: Vec<&str> =
        files["items"].as_array().unwrap().iter().filter_map(|one| one["path"].as_str()).collect();
    assert!(paths.contains(&&*told), "{paths:?}");
    assert!(desk.cli(&["logs", "a"]).1.contains(said));
}

#[tokio::test]
async fn a_command_that_no_kernel_takes_is_refused_before_it_is_made() {
    let desk = Desk::new().await;
    // 60 KB that would become 900 MB.
    let spec =
        json!({"command": ["echo", "{{A}}".repeat(6_000)], "env": {"A": "x".repeat(30_000)}});
    let refused = desk.ask("PUT", "/v1/sandboxes/a", &document(spec).to_string()).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.json["violations"][0]["path"], "spec.command[1]");
    // Each word is possible, and all of them are not.
    let spec = json!({"command": vec!["{{A}}"; 100], "env": {"A": "x".repeat(30_000)}});
    let refused = desk.ask("PUT", "/v1/sandboxes/a", &document(spec).to_string()).await;
    assert_eq!(refused.json["violations"][0]["path"], "spec.command", "{refused:?}");
    let spec = json!({"command": ["bash", "-c", "echo ${#0} ${#A}; sleep 1000", "{{A}}{{A}}"],
        "env": {"A": "x".repeat(60_000)}, "limits": {"timeout_seconds": 0}});
    let put = desk.ask("PUT", "/v1/sandboxes/a", &document(spec).to_string()).await;
    assert_eq!(put.status, 201, "{put:?}");
    desk.wait_logs("a", "120000 60000").await;
    // Nor does any other way to a program lead past it.
    for body in [
        json!({"command": ["echo", "x".repeat(200_000)]}),
        json!({"command": ["echo"], "env": {"A": "x".repeat(200_000)}}),
        json!({"command": vec!["x".repeat(100_000); 30]}),
    ] {
        let refused = desk.post("/v1/sandboxes/a/exec", body).await;
        assert_eq!((refused.status, &refused.json["code"]), (422, &json!("invalid")));
    }
    assert_eq!(desk.post("/v1/sandboxes/a/kill?wait=20s", Value::Null).await.status, 200);
    let refused = desk.post("/sandboxes/a/start", json!({"command": "{{A}}{{A}}{{A}}"})).await;
    assert_eq!(refused.status, 422, "{refused:?}");
}

#[tokio::test]
async fn streams_beyond_the_most_are_refused_and_free_again_when_their_client_leaves() {
    let bounds = json!({"watches_max": 2, "followers_max": 2, "consoles_max": 2, "execs_max": 2});
    let desk = bounded(bounds).await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["true"], "state": "stopped"}));
    desk.wait_phase("a", "Stopped").await;
    for (path, more) in [
        ("/v1/sandboxes?watch=1", ""),
        ("/v1/events?follow=1", ""),
        ("/v1/sandboxes/a/logs?follow=1", ""),
        ("/console/a", UPGRADE),
        ("/v1/sandboxes/a/exec", UPGRADE),
    ] {
        let open = || {
            let mut stream = connect(&desk);
            stream.write_all(head("GET", path, more).as_bytes()).unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).unwrap();
            (stream, String::from_utf8_lossy(&line).into_owned())
        };
        let good = if more.is_empty() { "HTTP/1.1 200" } else { "HTTP/1.1 101" };
        // A place is free again a moment after whoever had it has left, here or at the path before.
        let opened = async || {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let (stream, line) = open();
                if line == good {
                    return stream;
                }
                assert!(Instant::now() < deadline, "{path}: places are not free: {line}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let both = (opened().await, opened().await);
        assert_eq!(open().1, "HTTP/1.1 429", "{path}");
        drop(both);
        opened().await;
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_left() {
    let desk = bounded(json!({"stalled_after": "2s", "followers_max": 1})).await;
    let script = "while :; do printf '%01000d\\n' 1; done";
    let spec = json!({"command": ["bash", "-c", script], "limits": {"timeout_seconds": 0}});
    desk.write_spec("a.yaml", "a", &spec);
    desk.wait_phase("a", "Running").await;
    let mut stalled = connect(&desk);
    let ask = head("GET", "/v1/sandboxes/a/logs?follow=1", "");
    stalled.write_all(ask.as_bytes()).unwrap();
    let mut first = [0; 12];
    stalled.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let began = Instant::now();
    // Its place is taken, until it is found out that it reads nothing.
    loop {
        let mut next = connect(&desk);
        next.write_all(ask.as_bytes()).unwrap();
        next.read_exact(&mut first).unwrap();
        if &first == b"HTTP/1.1 200" {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it is waited for without end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() > Duration::from_millis(1_000), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_console_frame_that_is_too_large_closes_its_connection_alone() {
    let desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["cat"], "limits": {"timeout_seconds": 0}}));
    desk.wait_phase("a", "Running").await;
    let url = format!("ws://127.0.0.1:{}/console/a?token={TOKEN}", desk.port);
    let (mut other, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let input = json!({"type": "input", "content": "x".repeat(300 << 10)}).to_string();
    let _ = socket.send(Message::text(input)).await;
    let closed = async {
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    let hello = json!({"type": "input", "content": "hello"}).to_string();
    other.send(Message::text(hello)).await.unwrap();
    desk.wait_logs("a", "hello").await;
}

/// The head of a masked frame: final or not, of a kind, and as long as it says.
fn frame_head(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0xFF][..], &length.to_be_bytes()[..], &[0; 4]].concat()
}

#[tokio::test]
async fn a_frame_that_does_not_end_is_not_kept() {
    let desk = Desk::new().await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["cat"], "limits": {"timeout_seconds": 0}}));
    desk.wait_phase("a", "Running").await;
    let open = |path: &str, token: &str| {
        let mut stream = connect(&desk);
        let text = head("GET", path, UPGRADE).replace(TOKEN, token);
        stream.write_all(text.as_bytes()).unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"HTTP/1.1 101", "{path}");
        stream
    };
    for path in ["/console/a", "/v1/sandboxes/a/exec"] {
        // Its head alone says that it is too large.
        let mut one = open(path, TOKEN);
        one.write_all(&frame_head(0x81, 15 << 20)).unwrap();
        read_all(&mut one);
        // So are many together, none of which is the last.
        let mut many = open(path, TOKEN);
        for n in 0..3 {
            let first = if n == 0 { 0x01 } else { 0x00 };
            let piece = [frame_head(first, 100 << 10), vec![b'x'; 100 << 10]].concat();
            // The other end may be gone by the last one.
            let _ = many.write_all(&piece);
        }
        read_all(&mut many);
    }
    // Who may only look has nothing to say.
    let ticket = desk.post("/v1/sandboxes/a/ticket?read_only=1", Value::Null).await;
    let ticket = ticket.json["ticket"].as_str().unwrap_or_else(|| panic!("{ticket:?}")).to_owned();
    let mut silent = open(&format!("/console/a?ticket={ticket}"), "another");
    silent.write_all(&frame_head(0x81, 64 << 10)).unwrap();
    read_all(&mut silent);
    let logs = desk.post("/v1/sandboxes/a/input", json!({"input": "hello"})).await;
    assert_eq!(logs.status, 200);
    desk.wait_logs("a", "hello").await;
}

#[tokio::test]
async fn a_console_with_its_index_is_within_its_bound() {
    let desk = Desk::with(json!({"console_mb": 1})).await;
    // Each byte on another stream than the last: an entry of the index for it.
    let script = "import os\nfor _ in range(200000):\n os.write(1, b'a')\n os.write(2, b'b')";
    let spec = json!({"command": ["python3", "-c", script], "restart": {"policy": "never"}});
    desk.write_spec("a.yaml", "a", &spec);
    let a = desk.wait_phase("a", "Completed").await;
    let console = desk.path("state/console").join(a["metadata"]["uid"].as_str().unwrap());
    let files =
        std::fs::read_dir(&console).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let bytes: u64 = files.map(|meta| meta.len()).sum();
    assert!((1..=1 << 20).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn tickets_that_nobody_uses_are_only_so_many() {
    let desk = bounded(json!({"requests_per_second": 0, "requests_per_second_per_peer": 0})).await;
    desk.write_spec("a.yaml", "a", &json!({"command": ["true"], "state": "stopped"}));
    desk.wait_phase("a", "Stopped").await;
    let mut made = 0;
    let refused = loop {
        let answer = desk.post("/v1/sandboxes/a/ticket", Value::Null).await;
        if answer.status != 200 {
            break answer;
        }
        made += 1;
    };
    assert_eq!((made, refused.status), (1_024, 409), "{refused:?}");
}

#[tokio::test]
async fn programs_run_inside_are_only_so_many_and_a_shim_speaks_to_so_many() {
    let desk = Desk::new().await;
    let limits = json!({"timeout_seconds": 0, "max_processes": 200});
    desk.write_spec("a.yaml", "a", &json!({"command": ["sleep", "1000"], "limits": limits}));
    let a = desk.wait_phase("a", "Running").await;
    let waits = |n: usize| {
        let script = format!("touch begun-{n}; until [ -e end ]; do sleep 0.05; done");
        desk.post("/v1/sandboxes/a/exec", json!({"command": ["sh", "-c", script]}))
    };
    let running = futures_util::future::join_all((0..16).map(waits));
    let workspace = desk.workspace(&a);
    let one_more = async {
        let begun = || (0..16).all(|n| workspace.join(format!("begun-{n}")).exists());
        let deadline = Instant::now() + PATIENCE;
        while !begun() {
            assert!(Instant::now() < deadline, "they do not begin");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Of whoever owns the daemon, there is room for some more.
        let owner = desk.command(&["exec", "a", "--", "true"]).status().unwrap();
        assert!(owner.success(), "{owner}");
        let refused = desk.post("/v1/sandboxes/a/exec", json!({"command": ["true"]})).await;
        std::fs::write(workspace.join("end"), "").unwrap();
        refused
    };
    let (running, refused) = tokio::join!(running, one_more);
    assert_eq!((refused.status, &refused.json["code"]), (429, &json!("too_many")), "{refused:?}");
    assert!(running.iter().all(|one| one.status == 200), "{running:?}");
    let after = desk.post("/v1/sandboxes/a/exec", json!({"command": ["true"]})).await;
    assert_eq!(after.status, 200, "{after:?}");
    let iid = a["status"]["instance"]["iid"].as_str().unwrap();
    let socket = desk.path("run/i").join(iid).join("sock");
    let lost: Vec<_> =
        (0..20).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    // The daemon's own is one of the sixteen.
    let mut last = lost.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
    drop(lost);
    assert_eq!(desk.post("/v1/sandboxes/a/stop?wait=20s", Value::Null).await.status, 200);
}
