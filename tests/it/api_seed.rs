//! The seed's contract, row by row, and each of its defects as a test that it stays mended.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::desk::{Desk, PATIENCE, TOKEN};

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn create(desk: &Desk, body: Value) -> Value {
    let answer = desk.post("/sandboxes", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json["data"].clone()
}

async fn bash(desk: &Desk) -> String {
    let made =
        create(desk, json!({"runtime": "bash", "memory_mb": 64, "timeout_seconds": 0})).await;
    made["uuid"].as_str().unwrap().to_owned()
}

fn run(script: &str) -> Value {
    json!({"command": "bash", "args": ["-c", script]})
}

async fn console(desk: &Desk, id: &str, query: &str) -> Socket {
    let url = format!("ws://127.0.0.1:{}/console/{id}?token={TOKEN}{query}", desk.port);
    connect_async(url).await.unwrap().0
}

/// Reads frames until one of this type comes; output on the way is collected.
async fn read_until(socket: &mut Socket, kind: &str) -> (Value, String) {
    let mut output = String::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await;
        let message =
            next.unwrap_or_else(|_| panic!("no {kind}; so far {output:?}")).unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["type"] == "output" {
            output.push_str(frame["content"].as_str().unwrap());
        }
        if frame["type"] == kind {
            return (frame, output);
        }
    }
}

async fn read_text(socket: &mut Socket, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        all.push_str(&read_until(socket, "output").await.1);
    }
    all
}

#[tokio::test]
async fn health_needs_no_token_and_says_what_it_is() {
    let desk = Desk::new().await;
    let answer = desk.ask_as(None, "GET", "/health", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        (&answer.json["status"], &answer.json["isolation"]),
        (&json!("ok"), &json!("bubblewrap"))
    );
    assert!(answer.json["uptime"].as_f64().unwrap() >= 0.0 && answer.json["version"].is_string());
}

#[tokio::test]
async fn a_sandbox_is_made_shown_listed_and_deleted() {
    let desk = Desk::new().await;
    let made = create(&desk, json!({"runtime": "node", "memory_mb": 100})).await;
    let id = made["uuid"].as_str().unwrap();
    assert_eq!((&made["runtime"], &made["status"]), (&json!("node"), &json!("created")));
    let limits = json!({"memory_mb": 100, "cpu_percent": 100, "disk_mb": 1024, "timeout_seconds": 0,
        "max_processes": 64, "max_files": 1024});
    assert_eq!(made["limits"], limits);
    assert!(made["created_at"].as_str().unwrap().ends_with('Z') && made["pid"].is_null());
    let shown = desk.get(&format!("/sandboxes/{id}")).await.json;
    assert_eq!(shown["data"]["uuid"], made["uuid"]);
    let zeros = ["memory_bytes", "cpu_ticks", "disk_read_bytes", "disk_write_bytes"];
    assert!(zeros.iter().all(|key| shown["data"]["stats"][key] == 0), "{shown}");
    // The name will do as well as the uuid.
    let name = made["name"].as_str().unwrap();
    assert_eq!(desk.get(&format!("/sandboxes/{name}")).await.status, 200);
    let list = desk.get("/sandboxes").await.json;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let deleted = desk.ask("DELETE", &format!("/sandboxes/{id}"), "").await;
    assert_eq!((deleted.status, deleted.json), (200, json!({"success": true})));
    assert_eq!(desk.get(&format!("/sandboxes/{id}")).await.status, 404);
    assert_eq!(desk.get("/sandboxes").await.json, json!({"data": []}));
}

#[tokio::test]
async fn every_field_of_a_creation_is_optional_and_checked() {
    let desk = Desk::new().await;
    assert_eq!(create(&desk, Value::Null).await["runtime"], "node");
    let made = create(
        &desk,
        json!({"name": "mine", "image": "bash", "env": {"A": "b"},
        "isolation": "process", "startup": "bash -c 'echo hi'", "timeout_seconds": 0}),
    )
    .await;
    assert_eq!((&made["name"], &made["isolation"]), (&json!("mine"), &json!("process")));
    assert_eq!(desk.sandbox("mine").await["spec"]["command"], json!(["bash", "-c", "echo hi"]));
    assert_eq!(desk.post("/sandboxes", json!({"name": "mine"})).await.status, 409);
    let bad = desk
        .post(
            "/sandboxes",
            json!({"memory_mb": -1, "memroy": 1, "runtime": "ruby",
        "max_files": "many"}),
        )
        .await;
    assert_eq!(bad.status, 422);
    let paths: Vec<&str> = bad.json["violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["max_files", "memory_mb", "memroy", "runtime"]);
    assert!(bad.json["error"].as_str().unwrap().contains("memory_mb"));
    assert_eq!(desk.ask("POST", "/sandboxes", "{").await.status, 400);
}

#[tokio::test]
async fn a_run_is_started_seen_stopped_and_started_again() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let start = format!("/sandboxes/{id}/start");
    let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let answer = desk.post(&start, run(script)).await;
    assert_eq!((answer.status, answer.json), (200, json!({"success": true})));
    let shown = desk.get(&format!("/sandboxes/{id}")).await.json["data"].clone();
    assert_eq!(shown["status"], "running");
    assert!(shown["pid"].as_u64().unwrap() > 1 && shown["started_at"].is_string());
    assert!(shown["stats"]["memory_bytes"].as_u64().unwrap() > 0, "{shown}");
    // The old daemon lost the first process here.
    assert_eq!(desk.post(&start, run(script)).await.status, 409);
    desk.wait_logs(&id, "up").await;
    let stop = format!("/sandboxes/{id}/stop");
    assert_eq!(desk.post(&stop, Value::Null).await.json, json!({"success": true}));
    let shown = desk.get(&format!("/sandboxes/{id}")).await.json["data"].clone();
    assert_eq!((&shown["status"], &shown["exit_code"]), (&json!("stopped"), &json!(7)));
    assert!(shown["stopped_at"].is_string() && shown["pid"].is_null());
    assert_eq!(
        desk.post(&stop, Value::Null).await.status,
        200,
        "stopping a stopped one is a success"
    );
    // With no command, the last one is used.
    assert_eq!(desk.post(&start, Value::Null).await.status, 200);
    desk.post(&format!("/sandboxes/{id}/kill"), Value::Null).await;
    let shown = desk.get(&format!("/sandboxes/{id}")).await.json["data"].clone();
    assert_eq!(shown["exit_code"], 137);
}

#[tokio::test]
async fn a_stop_kills_what_ignores_it_after_the_grace() {
    let desk = Desk::new().await;
    let spec = json!({"command": ["bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"],
        "stop": {"grace": "200ms"}, "limits": {"timeout_seconds": 0}});
    desk.write_spec("deaf.yaml", "deaf", &spec);
    desk.wait_logs("deaf", "up").await;
    assert_eq!(desk.post("/sandboxes/deaf/stop", Value::Null).await.status, 200);
    assert_eq!(desk.get("/sandboxes/deaf").await.json["data"]["exit_code"], 137);
}

#[tokio::test]
async fn a_kill_ends_the_whole_tree() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let script = "setsid sleep 987 & sleep 988 & echo up; sleep 989";
    desk.post(&format!("/sandboxes/{id}/start"), run(script)).await;
    desk.wait_logs(&id, "up").await;
    let answer = desk.post(&format!("/sandboxes/{id}/kill"), Value::Null).await;
    assert_eq!(answer.status, 200);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !["sleep\0987", "sleep\0988", "sleep\0989"].iter().any(|one| line.starts_with(one)),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_an_error_and_the_daemon_lives() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let answer = desk.post(&format!("/sandboxes/{id}/start"), json!({"command": "no-such"})).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.json["error"].as_str().unwrap().contains("no-such"), "{answer:?}");
    assert!(desk.logs(&id).await.contains("no-such"));
    assert_eq!(desk.get("/health").await.status, 200);
    // Neither a command nor an image.
    let spec = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "empty"},
        "spec": {"state": "stopped"}});
    assert_eq!(desk.ask("PUT", "/v1/sandboxes/empty", &spec.to_string()).await.status, 201);
    let answer = desk.post("/sandboxes/empty/start", Value::Null).await;
    assert!(answer.json["error"].as_str().unwrap().starts_with("Command required"), "{answer:?}");
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_file_owned_spec_is_not_edited_by_a_start() {
    let desk = Desk::new().await;
    desk.write_spec("a.yaml", "owned", &json!({"command": ["sleep", "1000"], "state": "stopped"}));
    desk.wait_phase("owned", "Stopped").await;
    let answer =
        desk.post("/sandboxes/owned/start", json!({"command": "sleep", "args": ["77"]})).await;
    if crate::STORE == "files" {
        // There the API edits the file itself, and no other of that name.
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = std::fs::read_to_string(desk.path("desired/a.yaml")).unwrap();
        assert!(text.contains("77") && !desk.path("desired/owned.yaml").exists(), "{text}");
        return;
    }
    assert_eq!(answer.status, 409);
    assert!(answer.json["error"].as_str().unwrap().contains("a.yaml"), "{answer:?}");
    assert_eq!(desk.post("/sandboxes/owned/start", Value::Null).await.status, 200);
}

#[tokio::test]
async fn input_reaches_stdin_with_its_newline() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let input = format!("/sandboxes/{id}/input");
    assert_eq!(desk.post(&input, json!({"input": "x"})).await.status, 409);
    desk.post(
        &format!("/sandboxes/{id}/start"),
        run("while read -r line; do echo \"<$line>\"; done"),
    )
    .await;
    let answer = desk.post(&input, json!({"input": "héllo wörld"})).await;
    assert_eq!((answer.status, answer.json), (200, json!({"success": true})));
    desk.wait_logs(&id, "<héllo wörld>").await;
    assert_eq!(desk.post(&input, json!({"inptu": "x"})).await.status, 422);
    assert_eq!(desk.post(&input, json!({})).await.status, 422);
}

#[tokio::test]
async fn unknown_ids_are_404_on_every_verb_and_paths_delete_nothing() {
    let desk = Desk::new().await;
    let outside = desk.path("precious");
    std::fs::write(&outside, "x").unwrap();
    let absolute = outside.to_str().unwrap().replace('/', "%2F");
    for id in ["nope", "00000000-0000-0000-0000-000000000000", "..%2Fprecious", &absolute] {
        for (method, verb) in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/start"),
            ("POST", "/stop"),
            ("POST", "/kill"),
            ("POST", "/input"),
        ] {
            let answer = desk.ask(method, &format!("/sandboxes/{id}{verb}"), "").await;
            assert_eq!(answer.status, 404, "{method} {id}{verb}: {answer:?}");
            assert_eq!(answer.json["error"], "Not found");
        }
    }
    assert!(outside.exists());
}

#[tokio::test]
async fn nothing_is_served_without_the_token() {
    let desk = Desk::new().await;
    let paths = [
        ("GET", "/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/sandboxes/x"),
        ("DELETE", "/sandboxes/x"),
        ("POST", "/sandboxes/x/start"),
        ("GET", "/v1/sandboxes"),
        ("POST", "/v1/apply"),
        ("GET", "/v1/events"),
        ("GET", "/v1/files"),
    ];
    for token in
        [None, Some("wrong"), Some(""), Some("a-token-for-test"), Some("a-token-for-tests2")]
    {
        for (method, path) in paths {
            let answer = desk.ask_as(token, method, path, "").await;
            assert_eq!(
                (answer.status, &answer.json["error"]),
                (401, &json!("Unauthorized")),
                "{path}"
            );
        }
    }
    let log = desk.log();
    assert!(!log.contains(TOKEN), "the token is in the log");
}

#[tokio::test]
async fn the_console_speaks_as_it_did() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let mut socket = console(&desk, &id, "").await;
    let say = |value: Value| Message::Text(value.to_string().into());
    let script = "echo out; echo err >&2; read -r line; echo \"got $line\"; exit 5";
    socket
        .send(say(json!({"type": "start", "command": "bash", "args": ["-c", script]})))
        .await
        .unwrap();
    let seen = read_text(&mut socket, "err").await;
    assert!(seen.contains("out\n"), "{seen}");
    let (stats, _) = read_until(&mut socket, "stats").await;
    assert!(stats["memory_bytes"].as_u64().unwrap() > 0 && stats["cpu_ticks"].is_u64(), "{stats}");
    socket.send(say(json!({"type": "input", "content": "this"}))).await.unwrap();
    let (exit, rest) = read_until(&mut socket, "exit").await;
    assert_eq!((exit["code"].as_i64(), rest.as_str()), (Some(5), "got this\n"));
    socket.send(say(json!({"type": "start", "command": "sleep", "args": ["1000"]}))).await.unwrap();
    read_until(&mut socket, "stats").await;
    socket.send(say(json!({"type": "stop"}))).await.unwrap();
    assert_eq!(read_until(&mut socket, "exit").await.0["code"], 143);
    socket.send(say(json!({"type": "start", "command": "sleep", "args": ["1000"]}))).await.unwrap();
    read_until(&mut socket, "stats").await;
    socket.send(say(json!({"type": "kill"}))).await.unwrap();
    assert_eq!(read_until(&mut socket, "exit").await.0["code"], 137);
    socket.send(say(json!({"type": "input", "content": "x"}))).await.unwrap();
    let (error, _) = read_until(&mut socket, "error").await;
    assert!(error["message"].as_str().unwrap().contains("not running"), "{error}");
    socket.send(Message::Text("nonsense".into())).await.unwrap();
    read_until(&mut socket, "error").await;
}

#[tokio::test]
async fn the_console_tells_of_a_command_that_does_not_exist() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let mut socket = console(&desk, &id, "").await;
    let start = json!({"type": "start", "command": "no-such"});
    socket.send(Message::Text(start.to_string().into())).await.unwrap();
    let (error, _) = read_until(&mut socket, "error").await;
    assert!(error["message"].as_str().unwrap().contains("no-such"), "{error}");
}

#[tokio::test]
async fn a_console_without_an_id_is_closed_with_4001_and_a_wrong_token_is_401() {
    let desk = Desk::new().await;
    let url = format!("ws://127.0.0.1:{}/console?token={TOKEN}", desk.port);
    let (mut socket, _) = connect_async(url).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("not closed") };
    assert_eq!(u16::from(close.code), 4001);
    let id = bash(&desk).await;
    for query in ["?token=wrong", "", "?ticket=wrong"] {
        let url = format!("ws://127.0.0.1:{}/console/{id}{query}", desk.port);
        match connect_async(url).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 401),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn split_characters_arrive_whole_and_invalid_ones_are_marked() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let mut socket = console(&desk, &id, "").await;
    let script =
        r"printf '\xf0\x9f'; sleep 0.2; printf '\xa6\x80|\xff|'; sleep 0.1; printf 'end\xe2\x82'";
    desk.post(&format!("/sandboxes/{id}/start"), run(script)).await;
    let (_, output) = read_until(&mut socket, "exit").await;
    assert_eq!(output, "🦀|\u{FFFD}|end\u{FFFD}");
}

#[tokio::test]
async fn history_is_there_for_who_comes_late_and_offsets_go_on() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    desk.post(&format!("/sandboxes/{id}/start"), run("echo first; echo second")).await;
    desk.wait_logs(&id, "second").await;
    let mut socket = console(&desk, &id, "").await;
    assert_eq!(read_until(&mut socket, "output").await.1, "first\nsecond\n");
    let mut socket = console(&desk, &id, "&offset=6&format=binary").await;
    let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(message, Message::Binary("second\n".into()));
}

#[tokio::test]
async fn limits_and_timeouts_are_enforced_and_told() {
    let desk = Desk::new().await;
    let made = create(
        &desk,
        json!({"runtime": "bash", "timeout_seconds": 1, "cpu_percent": 20,
        "memory_mb": 64}),
    )
    .await;
    let id = made["uuid"].as_str().unwrap();
    desk.post(&format!("/sandboxes/{id}/start"), run("while :; do :; done")).await;
    desk.wait_for(id, "timed out", |one| one["status"]["last_exit"]["kind"] == "timeout").await;
    let exit = desk.sandbox(id).await["status"]["last_exit"].clone();
    assert!(exit["throttled_usec"].as_u64().unwrap() > 100_000, "cpu is a cap: {exit}");
    // Node, whose address space is far larger than its memory.
    let node = create(&desk, json!({"runtime": "node", "memory_mb": 100})).await;
    let node = node["uuid"].as_str().unwrap();
    let script = json!({"command": "node", "args": ["-e", "console.log('alive')"]});
    assert_eq!(desk.post(&format!("/sandboxes/{node}/start"), script).await.status, 200);
    desk.wait_logs(node, "alive").await;
}

#[tokio::test]
async fn the_environment_of_the_daemon_stays_outside() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    desk.post(&format!("/sandboxes/{id}/start"), run("env; ls /root /etc/shadow; echo done")).await;
    let logs = desk.wait_logs(&id, "done").await;
    assert!(!logs.contains("CARGO") && logs.contains("TERM=xterm-256color"), "{logs}");
    assert_eq!(logs.matches("No such file").count(), 2, "{logs}");
}

#[tokio::test]
async fn a_token_is_made_where_none_is_given_and_a_weak_isolation_only_by_choice() {
    let desk = Desk::with(json!({"token": null, "isolation_floor": null})).await;
    let token = std::fs::read_to_string(desk.path("state/token")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(desk.path("state/token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(desk.ask_as(Some(token.trim()), "GET", "/sandboxes", "").await.status, 200);
    assert_eq!(desk.ask("GET", "/sandboxes", "").await.status, 401);
    let body = json!({"isolation": "process"}).to_string();
    let refused = desk.ask_as(Some(token.trim()), "POST", "/sandboxes", &body).await;
    assert_eq!(refused.status, 422);
    assert!(refused.json["error"].as_str().unwrap().contains("weaker"), "{refused:?}");
    let gvisor = json!({"isolation": "gvisor", "runtime": "bash"}).to_string();
    let made = desk.ask_as(Some(token.trim()), "POST", "/sandboxes", &gvisor).await;
    let path = format!("/sandboxes/{}/start", made.json["data"]["uuid"].as_str().unwrap());
    let refused = desk.ask_as(Some(token.trim()), "POST", &path, "").await;
    assert_eq!(refused.status, 422, "never weaker than asked: {refused:?}");
}

#[tokio::test]
async fn a_hundred_readers_each_get_everything_and_one_that_never_reads_harms_none() {
    let desk = Desk::new().await;
    let id = bash(&desk).await;
    let url = format!("ws://127.0.0.1:{}/console/{id}?token={TOKEN}", desk.port);
    // It is held open, and never polled.
    let (deaf, _) = connect_async(&url).await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(connect_async(&url).await.unwrap().0);
    }
    desk.post(&format!("/sandboxes/{id}/start"), run("seq 1 100000; exit 3")).await;
    for reader in &mut readers {
        let (exit, output) = read_until(reader, "exit").await;
        assert_eq!((exit["code"].as_i64(), output.len()), (Some(3), 588_895));
    }
    drop(deaf);
}
