//! The full API and the command line over it.

use futures_util::StreamExt;
use reqwest::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::connect_async;

use crate::desk::{Desk, PATIENCE, TOKEN};

fn document(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec})
}

fn sleeper() -> Value {
    json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}})
}

async fn put(desk: &Desk, name: &str, spec: &Value) -> crate::desk::Answer {
    let path = format!("/v1/sandboxes/{name}");
    desk.ask("PUT", &path, &document(name, spec).to_string()).await
}

#[tokio::test]
async fn a_put_declares_and_the_loop_does_the_rest() {
    let desk = Desk::new().await;
    let made = put(&desk, "web", &sleeper()).await;
    assert_eq!(made.status, 201, "{made:?}");
    let owner = if crate::STORE == "files" { "file:web.yaml" } else { "api" };
    assert_eq!(made.json["metadata"]["owner"], owner);
    let running = desk.wait_phase("web", "Running").await;
    assert_eq!(running["status"]["observed_generation"], 1);
    let limits = running["status"]["limits"].as_array().unwrap();
    let memory = limits.iter().find(|limit| limit["limit"] == "memory_mb").unwrap();
    assert_eq!((&memory["read_back"], &memory["verdict"]), (&json!(512), &json!("enforced")));
    let same = put(&desk, "web", &sleeper()).await;
    assert_eq!((same.status, &same.json["metadata"]["generation"]), (200, &json!(1)));
    let deleted = desk.ask("DELETE", "/v1/sandboxes/web?wait=30s&force=true", "").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(desk.get("/v1/sandboxes/web").await.status, 404);
    assert!(
        !desk.path("state/console").join(running["metadata"]["uid"].as_str().unwrap()).exists()
    );
}

#[tokio::test]
async fn an_edit_states_what_it_expects_and_is_refused_when_that_is_gone() {
    let desk = Desk::new().await;
    put(&desk, "web", &json!({"command": ["true"], "state": "stopped"})).await;
    desk.wait_phase("web", "Stopped").await;
    let http = reqwest::Client::new();
    let url = desk.url("/v1/sandboxes/web");
    let shown = http.get(&url).bearer_auth(TOKEN).send().await.unwrap();
    let etag = shown.headers()[ETAG].clone();
    let mut read: Value = shown.json().await.unwrap();
    let send = |body: &Value, header: Option<(reqwest::header::HeaderName, &str)>| {
        let mut request = http.put(&url).bearer_auth(TOKEN).body(body.to_string());
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        request.send()
    };
    // What was read can be changed and sent back as it is.
    read["spec"]["command"] = json!(["false"]);
    let changed = send(&read, Some((IF_MATCH, etag.to_str().unwrap()))).await.unwrap();
    assert_eq!(changed.status(), 200);
    let stale = send(&read, None).await.unwrap();
    assert_eq!(stale.status(), 409, "the version inside the document counts too");
    let body: Value = stale.json().await.unwrap();
    assert_eq!(body["code"], "stale");
    let exists = send(&document("web", &sleeper()), Some((IF_NONE_MATCH, "*"))).await.unwrap();
    assert_eq!(exists.status(), 409);
    let missing =
        desk.ask("DELETE", "/v1/sandboxes/web?uid=00000000-0000-0000-0000-000000000000", "");
    assert_eq!(missing.await.status, 409);
}

#[tokio::test]
async fn all_faults_of_a_document_come_back_with_their_paths() {
    let desk = Desk::new().await;
    let bad =
        put(&desk, "web", &json!({"tty": 1, "limits": {"memory": 1}, "image": "rubby"})).await;
    assert_eq!(bad.status, 422);
    let paths: Vec<&str> = bad.json["violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["spec.image", "spec.limits.memory", "spec.tty"]);
    let other =
        desk.ask("PUT", "/v1/sandboxes/other", &document("web", &sleeper()).to_string()).await;
    assert_eq!(other.status, 422);
    let huge = "x".repeat(5 << 20);
    assert_eq!(desk.ask("PUT", "/v1/sandboxes/web", &huge).await.status, 413);
    assert_eq!(desk.ask("PATCH", "/v1/sandboxes/web", "").await.status, 405);
    assert_eq!(desk.get("/v1/nothing").await.status, 404);
    assert_eq!(desk.get("/v1/sandboxes").await.json["items"], json!([]));
}

#[tokio::test]
async fn apply_says_first_and_does_then() {
    let desk = Desk::new().await;
    let text = "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {name: a}\nspec: {command: [sleep, '1000']}\n\
        ---\napiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {name: b}\nspec: {command: ['true'], state: stopped}\n";
    let dry = desk.ask("POST", "/v1/apply?dry_run=1", text).await;
    assert_eq!(dry.json["results"][0]["action"], "create");
    assert_eq!(desk.get("/v1/sandboxes/a").await.status, 404);
    let done = desk.ask("POST", "/v1/apply", text).await;
    assert_eq!((done.status, &done.json["results"][1]["action"]), (200, &json!("created")));
    desk.wait_phase("a", "Running").await;
    let again = desk.ask("POST", "/v1/apply", text).await;
    assert_eq!(again.json["results"][0]["action"], "unchanged");
    let changed = text.replace("'1000'", "'2000'");
    let dry = desk.ask("POST", "/v1/apply?dry_run=1", &changed).await;
    assert_eq!(
        dry.json["results"][0],
        json!({"name": "a", "action": "change", "effect": "restart",
        "fields": ["command"], "effects": {"command": "restart"},
        "changes": {"command": {"from": ["sleep", "1000"], "to": ["sleep", "2000"]}}})
    );
    desk.write_spec("f.yaml", "owned", &sleeper());
    desk.wait_phase("owned", "Running").await;
    // A file of specs is compared with what it says already, and is nobody else's rival.
    let own = desk.path("desired/f.yaml");
    let (code, said, _) = desk.cli(&["plan", "-f", own.to_str().unwrap(), "-o", "json"]);
    assert!(code == 0 && said.contains("unchanged"), "{said}");
    let (code, said, _) = desk.cli(&["plan", "-f", desk.path("desired").to_str().unwrap()]);
    assert!(code == 0 && said.contains("unchanged"), "{said}");
    let refused = desk.ask("POST", "/v1/apply", &text.replace("name: b", "name: owned")).await;
    // With specs in files, the file that it is in is edited.
    let want = if crate::STORE == "files" { 200 } else { 409 };
    assert_eq!(refused.status, want, "{refused:?}");
    // One that is in the way keeps all others out.
    assert_eq!(desk.sandbox("b").await["metadata"]["generation"], 1);
    let bad = desk.ask("POST", "/v1/apply", "spec: [").await;
    assert_eq!(bad.status, 422);
}

#[tokio::test]
async fn power_verbs_are_durable_and_work_on_any_sandbox() {
    let mut desk = Desk::new().await;
    desk.write_spec("f.yaml", "web", &sleeper());
    let first = desk.wait_phase("web", "Running").await["status"]["instance"]["pid"].clone();
    let again = desk.post("/v1/sandboxes/web/restart?wait=30s", Value::Null).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert_ne!(again.json["status"]["instance"]["pid"], first);
    let stopped = desk.post("/v1/sandboxes/web/stop?wait=30s", Value::Null).await;
    assert_eq!(stopped.json["power"]["hold"], "stopped");
    desk.wait_phase("web", "Stopped").await;
    // Neither a restart of the daemon nor an edit of the file ends a hold.
    desk.kill();
    desk.start().await;
    desk.write_spec("f.yaml", "web", &json!({"command": ["sleep", "2000"]}));
    desk.wait_for("web", "edited", |one| one["metadata"]["generation"] == 2).await;
    assert_eq!(desk.wait_phase("web", "Stopped").await["power"]["hold"], "stopped");
    let started = desk.post("/v1/sandboxes/web/start?wait=1", Value::Null).await;
    assert_eq!((started.status, &started.json["power"]["hold"]), (200, &Value::Null));
    assert_eq!(desk.post("/v1/sandboxes/web/dance", Value::Null).await.status, 404);
    assert_eq!(desk.post("/v1/sandboxes/web/start?wait=soon", Value::Null).await.status, 422);
}

#[tokio::test]
async fn a_watch_tells_every_change_from_a_version_on() {
    let desk = Desk::new().await;
    let version =
        desk.get("/v1/sandboxes").await.json["resource_version"].as_str().unwrap().to_owned();
    put(&desk, "web", &json!({"command": ["true"], "restart": {"policy": "never"}})).await;
    desk.wait_phase("web", "Completed").await;
    desk.ask("DELETE", "/v1/sandboxes/web?wait=1", "").await;
    let url = desk.url(&format!("/v1/sandboxes?watch=1&resource_version={version}"));
    let mut response = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.unwrap();
    let (mut text, mut kinds, mut versions) = (String::new(), Vec::new(), Vec::new());
    while kinds.last().is_none_or(|kind| kind != "DELETED") {
        let chunk =
            tokio::time::timeout(PATIENCE, response.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((line, rest)) = text.split_once('\n') {
            let event: Value = serde_json::from_str(line).unwrap();
            kinds.push(event["type"].as_str().unwrap().to_owned());
            let version = event["resource_version"].as_str().unwrap();
            versions.push(version.rsplit_once('-').unwrap().1.parse::<u64>().unwrap());
            text = rest.to_owned();
        }
    }
    assert_eq!(kinds[0], "ADDED");
    assert!(kinds[1..kinds.len() - 1].iter().all(|kind| kind == "MODIFIED"), "{kinds:?}");
    assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
    assert_eq!(desk.get("/v1/sandboxes?watch=1&resource_version=other-1").await.status, 410);
}

#[tokio::test]
async fn logs_are_read_by_offset_followed_and_told_apart() {
    let desk = Desk::new().await;
    let script = "echo one; echo two >&2; sleep 0.3; echo three; sleep 1000";
    put(&desk, "web", &json!({"command": ["bash", "-c", script]})).await;
    let url = |query: &str| desk.url(&format!("/v1/sandboxes/web/logs?{query}"));
    let http = reqwest::Client::new();
    let mut follow = http.get(url("follow=1")).bearer_auth(TOKEN).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("three") {
        let chunk = tokio::time::timeout(PATIENCE, follow.chunk()).await.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert_eq!(desk.get("/v1/sandboxes/web/logs?offset=8").await.json, "three\n");
    assert_eq!(desk.get("/v1/sandboxes/web/logs?tail=4").await.json, "ree\n");
    let lines =
        http.get(url("format=json")).bearer_auth(TOKEN).send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let two = lines.iter().find(|line| line["text"] == "two\n").unwrap();
    assert_eq!((&two["stream"], two["time"].is_string()), (&json!("stderr"), true));
    assert_eq!(desk.get("/v1/sandboxes/web/logs?offset=x").await.status, 400);
}

#[tokio::test]
async fn a_ticket_opens_one_console_once() {
    let desk = Desk::new().await;
    put(&desk, "web", &sleeper()).await;
    let made = desk.post("/v1/sandboxes/web/ticket?read_only=1", Value::Null).await.json;
    let ticket = made["ticket"].as_str().unwrap();
    let url = format!("ws://127.0.0.1:{}/console/web?ticket={ticket}", desk.port);
    let (mut socket, _) = connect_async(&url).await.unwrap();
    let stop = tokio_tungstenite::tungstenite::Message::Text(r#"{"type":"stop"}"#.into());
    futures_util::SinkExt::send(&mut socket, stop).await.unwrap();
    loop {
        let text = socket.next().await.unwrap().unwrap().into_text().unwrap().to_string();
        if text.contains("\"error\"") {
            assert!(text.contains("Unauthorized"), "{text}");
            break;
        }
    }
    assert!(connect_async(&url).await.is_err(), "a ticket works once");
}

#[tokio::test]
async fn the_files_store_keeps_what_the_api_is_told_in_files() {
    let mut desk = Desk::with(json!({"store": "files"})).await;
    let made = put(&desk, "web", &sleeper()).await;
    assert_eq!(
        (made.status, &made.json["metadata"]["owner"]),
        (201, &json!("file:web.yaml")),
        "{made:?}"
    );
    assert!(desk.path("desired/web.yaml").exists());
    desk.wait_phase("web", "Running").await;
    // The same contract: create, start with a command, delete.
    let seed = desk.post("/sandboxes", json!({"runtime": "bash", "name": "seed"})).await;
    assert_eq!(seed.status, 200, "{seed:?}");
    let start = json!({"command": "sleep", "args": ["77"]});
    assert_eq!(desk.post("/sandboxes/seed/start", start).await.status, 200);
    let text = std::fs::read_to_string(desk.path("desired/seed.yaml")).unwrap();
    assert!(text.contains("77"), "{text}");
    desk.kill();
    desk.start().await;
    desk.wait_phase("web", "Running").await;
    assert_eq!(desk.ask("DELETE", "/sandboxes/seed", "").await.status, 200);
    assert!(!desk.path("desired/seed.yaml").exists());
    let changed = put(&desk, "web", &json!({"command": ["sleep", "5"]})).await;
    assert_eq!((changed.status, &changed.json["metadata"]["generation"]), (200, &json!(2)));
}

#[tokio::test]
async fn an_edit_in_the_files_store_is_one_of_its_own_document() {
    let desk = Desk::with(json!({"store": "files"})).await;
    let stopped = |command: &str| json!({"command": [command], "state": "stopped"});
    let head = "apiVersion: sodium.dev/v1\nkind: Sandbox\n";
    let text = |name: &str| {
        format!(
            "# about {name}\n{head}metadata: {{name: {name}}}\nspec: {{command: [x], state: stopped}}\n"
        )
    };
    let path = desk.path("desired/theirs.yml");
    std::fs::write(&path, format!("{}---\n{}---\n{}", text("a"), text("b"), text("c"))).unwrap();
    for name in ["a", "b", "c"] {
        desk.wait_phase(name, "Stopped").await;
    }
    let changed = put(&desk, "b", &stopped("new")).await;
    assert_eq!((changed.status, &changed.json["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!(changed.json["metadata"]["owner"], "file:theirs.yml");
    let now = std::fs::read_to_string(&path).unwrap();
    let (before, after) = (text("a"), text("c"));
    assert!(now.starts_with(&before) && now.ends_with(&format!("---\n{after}")), "{now}");
    assert!(now.contains("# about b\n") && now.contains("new"), "{now}");
    // Two at once, in one file.
    let (one, two) = (stopped("one"), stopped("two"));
    let (a, c) = tokio::join!(put(&desk, "a", &one), put(&desk, "c", &two));
    assert_eq!((a.status, c.status), (200, 200), "{a:?} {c:?}");
    let deleted = desk.ask("DELETE", "/v1/sandboxes/b?wait=30s", "").await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    let now = std::fs::read_to_string(&path).unwrap();
    assert!(now.contains("one") && now.contains("two") && !now.contains("name: b"), "{now}");
    assert!(!desk.path("desired/b.yaml").exists());
    for name in ["a", "c"] {
        assert_eq!(desk.sandbox(name).await["metadata"]["generation"], 2, "{name}");
        let path = format!("/v1/sandboxes/{name}?wait=30s");
        assert_eq!(desk.ask("DELETE", &path, "").await.status, 200);
    }
    assert!(!path.exists());
    // What would not be taken is not written either.
    std::fs::write(&path, format!("{}---\n{head}metadata: {{name: d}}\nspce: 1\n", text("e")))
        .unwrap();
    assert_eq!(put(&desk, "theirs", &one).await.status, 201, "it has a file of its own");
    std::fs::rename(&path, desk.path("desired/f.yaml")).unwrap();
    let refused = put(&desk, "f", &one).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.json["error"].as_str().unwrap().contains("f.yaml"), "{refused:?}");
}

#[tokio::test]
async fn a_follower_of_events_sees_each_of_them_once() {
    const MADE: usize = 120;
    let desk = Desk::new().await;
    let follow = reqwest::Client::new().get(desk.url("/v1/events?follow=1")).bearer_auth(TOKEN);
    let mut followed = follow.send().await.unwrap();
    let names: Vec<String> = (0..MADE).map(|index| format!("s{index}")).collect();
    let spec = json!({"command": ["true"], "state": "stopped"});
    let made = names.iter().map(|name| put(&desk, name, &spec));
    let made = futures_util::stream::iter(made).buffer_unordered(16).collect::<Vec<_>>();
    let mut text = String::new();
    let read = async {
        while text.matches(r#""reason":"Created""#).count() < MADE {
            text.push_str(std::str::from_utf8(&followed.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    let (answers, read) = tokio::join!(made, tokio::time::timeout(PATIENCE, read));
    assert!(answers.iter().all(|answer| answer.status == 201));
    read.expect("each creation reaches the follower");
    let whole = &text[..=text.rfind('\n').unwrap()];
    let events: Vec<Value> =
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Those of one transaction share its number.
    assert!(events.is_sorted_by_key(|event| event["seq"].as_u64().unwrap()), "{whole}");
    let created = events.iter().filter(|event| event["reason"] == "Created");
    let mut seen: Vec<&str> = created.map(|event| event["name"].as_str().unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), MADE, "{whole}");
}

#[tokio::test]
async fn the_command_line_finds_the_daemon_and_prints_for_people_and_programs() {
    let desk = Desk::new().await;
    let spec = desk.path("web.yaml");
    let text = "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata:\n  name: web\nspec:\n  command: [bash, -c, 'echo hello; sleep 1000']\n";
    std::fs::write(&spec, text).unwrap();
    let spec = spec.to_str().unwrap();
    assert_eq!(desk.cli(&["check", spec]).0, 0);
    assert_eq!(desk.cli(&["plan", "-f", spec]).0, 2, "it would change something");
    assert_eq!(desk.cli(&["apply", "-f", spec]).0, 0);
    assert_eq!(desk.cli(&["plan", "-f", spec]).0, 0);
    desk.wait_logs("web", "hello").await;
    desk.wait_phase("web", "Running").await;
    let (code, out, _) = desk.cli(&["get"]);
    assert!(code == 0 && out.contains("NAME") && out.contains("Running"), "{out}");
    let (_, out, _) = desk.cli(&["get", "web", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["metadata"]["name"], "web");
    assert!(desk.cli(&["get", "web", "-o", "yaml"]).1.contains("name: web"));
    assert_eq!(desk.cli(&["logs", "web"]).1, "hello\n");
    for verb in ["stop", "start", "restart", "kill"] {
        let (code, _, err) = desk.cli(&[verb, "web"]);
        assert_eq!(code, 0, "{verb}: {err}");
    }
    assert!(desk.cli(&["events", "web"]).1.contains("KillRequested"));
    wait_settled(&desk).await;
    assert_eq!(desk.cli(&["delete", "web"]).0, 0);
    let (code, _, err) = desk.cli(&["get", "web"]);
    assert!(code == 1 && err.contains("there is no sandbox \"web\""), "{err}");
    assert_eq!(desk.cli(&["dance"]).0, 2);
    std::fs::write(spec, text.replace("command:", "comand:")).unwrap();
    let (code, out, _) = desk.cli(&["check", spec]);
    assert_eq!(code, 2);
    let want = "web.yaml:6:3: spec.comand: unknown field; did you mean \"command\"?\n  6 |   comand: [bash";
    assert!(out.contains(want), "{out}");
}

#[tokio::test]
async fn what_would_change_is_told_field_by_field_and_what_is_in_no_file_can_go() {
    let desk = Desk::new().await;
    std::fs::create_dir(desk.path("specs")).unwrap();
    let write = |name: &str, memory: u64| {
        let text = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name},
            "spec": {"command": ["sleep", "1000"], "limits": {"memory_mb": memory}}});
        std::fs::write(desk.path(&format!("specs/{name}.yaml")), text.to_string()).unwrap();
    };
    for name in ["a", "b", "c"] {
        write(name, 64);
    }
    let specs = desk.path("specs");
    let specs = specs.to_str().unwrap();
    let (code, out, _) = desk.cli(&["diff", specs]);
    assert!(code == 2 && out.contains("a: create, start\n"), "{out}");
    assert_eq!(desk.cli(&["apply", "-f", specs]).0, 0);
    assert_eq!(desk.cli(&["diff", specs]), (0, String::new(), String::new()));
    for name in ["a", "b", "c"] {
        desk.wait_phase(name, "Running").await;
    }
    write("a", 128);
    let (code, out, _) = desk.cli(&["diff", &format!("{specs}/a.yaml")]);
    assert!(code == 2 && out.starts_with("a: change, live\n"), "{out}");
    assert!(out.contains("  - memory_mb: 64\n  + memory_mb: 128\n"), "{out}");
    // What is in no file goes with its word, and only then.
    std::fs::remove_file(desk.path("specs/b.yaml")).unwrap();
    desk.write_spec("filed.yaml", "filed", &json!({"command": ["sleep", "1000"]}));
    desk.wait_phase("filed", "Running").await;
    let (_, out, _) = desk.cli(&["apply", "-f", specs, "--prune", "--dry-run"]);
    let pruned = |out: &str| {
        let rows = out.lines().filter(|row| row.contains("delete"));
        rows.map(|row| row.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Where the API declares in files, what it declared is a file like others.
    let is_filed = crate::STORE == "files";
    let goes: &[&str] = if is_filed { &[] } else { &["b"] };
    assert_eq!(pruned(&out), goes, "{out}");
    assert_eq!(desk.sandbox("b").await["status"]["phase"], "Running");
    assert_eq!(pruned(&desk.cli(&["apply", "-f", specs, "--prune"]).1), goes);
    if !is_filed {
        desk.wait_for("b", "gone", |sandbox| sandbox["error"] == "Not found").await;
    }
    desk.wait_phase("filed", "Running").await;
}

/// Until `sodiumd plan` has nothing to do: after a restart and a kill, it first has.
async fn wait_settled(desk: &Desk) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, out, err) = desk.cli(&["plan"]);
        if out.contains("nothing to do") {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{out}{err}\n{}", desk.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_console_ends_with_its_sandbox_though_its_client_says_nothing() {
    let desk = Desk::new().await;
    put(&desk, "gone", &json!({"command": ["true"], "state": "stopped"})).await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", desk.port)).await.unwrap();
    let request = format!(
        "GET /console/gone?token={TOKEN} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    desk.ask("DELETE", "/v1/sandboxes/gone?wait=30s&force=true", "").await;
    // It is told goodbye, does not answer, and does not hang up: as one that is stuck, or is gone.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    ended.expect("the daemon hangs up").unwrap();
}

#[tokio::test]
async fn a_sandbox_explains_who_set_what_what_was_seen_and_what_is_next() {
    let desk = Desk::new().await;
    let crash = |memory: u64, key: &str| {
        json!({"command": ["bash", "-c", "exit 3"], "env": {key: "secret"},
            "limits": {"memory_mb": memory}, "restart": {"policy": "always",
            "backoff": {"initial": "1h", "max": "2h"}}})
    };
    put(&desk, "web", &crash(64, "A")).await;
    desk.wait_phase("web", "BackingOff").await;
    put(&desk, "web", &crash(96, "B")).await;
    let changed = |one: &Value| {
        one["status"]["phase"] == "BackingOff" && one["status"]["observed_generation"] == 2
    };
    desk.wait_for("web", "changed and backing off", changed).await;
    let said = desk.get("/v1/sandboxes/web/explain").await.json;
    let by = if crate::STORE == "files" { "file:web.yaml" } else { "api" };
    for field in ["limits.memory_mb", "env.A", "env.B"] {
        let set = &said["fields"][field];
        assert_eq!((&set["generation"], &set["by"]), (&json!(2), &json!(by)), "{said:#}");
    }
    assert_eq!(said["fields"]["command"], Value::Null);
    assert!(!said.to_string().contains("secret"), "{said:#}");
    assert_eq!(said["observed"]["last_exit"]["code"], 3);
    assert_eq!(said["decided"]["next"], "wait");
    assert!(said["decided"]["due_at"].is_string() && said["decided"]["why"].is_string());
    assert!(said["events"].as_array().unwrap().iter().any(|event| event["reason"] == "Ended"));
    let (code, text, _) = desk.cli(&["explain", "web"]);
    assert_eq!(code, 0);
    for word in ["web is BackingOff", "generation 2", "limits.memory_mb", "decided   wait", "due "]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
}
