//! What the bars do with a daemon, and how long it takes.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::desk::{Desk, TOKEN, document, save};

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

impl Desk {
    pub async fn new(extra: Value) -> Self {
        let mut desk = Self::prepared(extra);
        desk.start().await;
        desk
    }

    pub fn add_image(&self, image: &Value) {
        fs::create_dir_all(self.path("images")).unwrap();
        fs::write(self.path("images/ready.json"), image.to_string()).unwrap();
    }

    pub fn has_images(&self) -> bool {
        self.path("images").is_dir()
    }

    /// Until as many sandboxes wait as the image wants.
    pub async fn wait_ready(&self) {
        while self.has_images() {
            let health = self.http.get(self.url("/health")).send().await.unwrap();
            let health: Value = health.json().await.unwrap();
            if health["warm"]["ready"] == 2 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What waits is nobody's; a daemon that has no use for it ends it.
    async fn drop_waiting(&mut self) {
        if self.has_images() {
            self.kill();
            fs::remove_dir_all(self.path("images")).unwrap();
            self.start().await;
        }
    }

    /// Ends the daemon; its sandboxes were ended before, and their shims are let go of first.
    pub async fn stop(&mut self) {
        self.drop_waiting().await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_dir(self.run.path().join("i")).unwrap().count() > 0
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.kill();
        let root = sodium_runtime::supervise::host::cgroups_of(self.run.path());
        root.remove();
    }

    pub async fn post(&self, path: &str, body: &'static str) -> Value {
        self.post_owned(path.to_owned(), body).await
    }

    pub async fn post_owned(&self, path: String, body: &'static str) -> Value {
        let sent =
            self.http.post(self.url(&path)).bearer_auth(TOKEN).body(body).send().await.unwrap();
        let status = sent.status();
        let json = sent.json().await.unwrap();
        assert!(status.is_success() || status == 409, "{path}: {json}");
        json
    }

    pub async fn put(&self, name: &str, spec: &Value) {
        let document = document(name, spec).to_string();
        let url = self.url(&format!("/v1/sandboxes/{name}"));
        let sent = self.http.put(url).bearer_auth(TOKEN).body(document).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
    }

    pub async fn console(&self, name: &str) -> Socket {
        let url = format!(
            "ws://127.0.0.1:{}/console/{name}?token={TOKEN}&format=binary&tail=0",
            self.port
        );
        tokio_tungstenite::connect_async(url).await.unwrap().0
    }

    pub async fn metrics(&self) -> String {
        let sent = self.http.get(self.url("/metrics")).bearer_auth(TOKEN).send().await;
        sent.unwrap().text().await.unwrap()
    }

    /// From the request to start it to its first byte on an open console; it ends by itself.
    pub async fn first_byte(&self, name: &str, console: &mut Socket) -> Duration {
        let began = Instant::now();
        let asked = self.post_owned(format!("/sandboxes/{name}/start"), "{}");
        let first = async {
            loop {
                if let Message::Binary(_) = console.next().await.unwrap().unwrap() {
                    return began.elapsed();
                }
            }
        };
        let (_, first) = tokio::join!(asked, first);
        self.wait_stopped(name).await;
        first
    }

    pub async fn wait_stopped(&self, name: &str) {
        loop {
            let sandbox = self.get(&format!("/v1/sandboxes/{name}")).await;
            if sandbox["status"]["instance"].is_null() && sandbox["status"]["phase"] != "Pending" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// One verb for each of the crowd, as many at once as a busy panel would send.
    pub async fn power_all(&self, verb: &str, count: usize) {
        let asked =
            (0..count).map(|index| self.post_owned(format!("/v1/sandboxes/s{index}/{verb}"), "{}"));
        futures_util::stream::iter(asked).buffer_unordered(32).collect::<Vec<_>>().await;
    }

    /// The number of the newest event.
    pub async fn last_event(&self) -> u64 {
        let events = self.get("/v1/events").await;
        events["items"].as_array().unwrap().last().map_or(0, |event| event["seq"].as_u64().unwrap())
    }

    /// Follows the events until so many starts have succeeded after that one. Looking at lists would be
    /// measured too.
    pub async fn wait_started(&self, since: u64, count: usize) {
        let url = self.url(&format!("/v1/events?follow=1&since={since}"));
        let mut events = self.http.get(url).bearer_auth(TOKEN).send().await.unwrap();
        let (mut started, mut pending) = (0, String::new());
        while started < count {
            let chunk = events.chunk().await.unwrap().unwrap();
            pending.push_str(std::str::from_utf8(&chunk).unwrap());
            let end = pending.rfind('\n').map_or(0, |at| at + 1);
            started += pending[..end].matches(r#""reason":"Started""#).count();
            pending.drain(..end);
        }
    }

    pub fn declare(&self, count: usize) {
        for index in 0..count {
            self.write_spec(index, &json!({"command": ["true"], "state": "stopped"}));
        }
    }

    fn write_spec(&self, index: usize, spec: &Value) {
        let name = format!("s{index}");
        save(&self.path("desired"), &name, &document(&name, spec));
    }

    /// Saves one spec after another; for each, milliseconds from saved to its step begun.
    pub async fn edits(&self, count: usize) -> Vec<f64> {
        let mut times = Vec::new();
        for index in 0..count {
            let saved = sodium_sys::clock::wall_ms();
            let restart = json!({"policy": "never"});
            self.write_spec(index, &json!({"command": ["true"], "restart": restart}));
            let path = format!("/v1/events?sandbox=s{index}");
            loop {
                let sandbox = self.get(&format!("/v1/sandboxes/s{index}")).await;
                let exit = &sandbox["status"]["last_exit"];
                if let Some(iid) = exit["iid"].as_str() {
                    assert!(!iid.is_empty());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The intent's own time: the event of the step that began it.
            let events = self.get(&path).await;
            let begun =
                events["items"].as_array().unwrap().iter().find(|one| one["reason"] == "Starting");
            let begun = begun.map(|one| one["time"].as_str().unwrap().to_owned()).unwrap();
            let begun: sodium_model::Time = serde_json::from_value(json!(begun)).unwrap();
            times.push(begun.0.saturating_sub(saved) as f64);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        times
    }

    /// `kill -9`, start, and how long until the API answers and until each sandbox takes input again.
    pub async fn adoption(&mut self, count: usize) -> (Duration, Duration) {
        self.kill();
        let began = Instant::now();
        self.start().await;
        let answered = began.elapsed();
        for index in 0..count {
            loop {
                let answer =
                    self.post_owned(format!("/sandboxes/s{index}/input"), r#"{"input": ""}"#).await;
                if answer["success"] == true {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        (answered, began.elapsed())
    }

    pub async fn delete(&self, name: &str) {
        let url = self.url(&format!("/sandboxes/{name}"));
        self.http.delete(url).bearer_auth(TOKEN).send().await.unwrap();
    }

    /// What the daemon uses of a cpu meanwhile.
    pub async fn cpu_percent(&self) -> f64 {
        let before = self.cpu_ticks();
        tokio::time::sleep(Duration::from_secs(20)).await;
        // A hundred ticks are a second.
        (self.cpu_ticks() - before) as f64 / 20.0
    }

    pub async fn delete_all(&self, count: usize) {
        let deletes = (0..count).map(async |index| self.delete(&format!("s{index}")).await);
        futures_util::stream::iter(deletes).buffer_unordered(32).collect::<Vec<_>>().await;
    }

    /// MiB/s from a sandbox to a WebSocket. The reader only walks the frames: what is measured is the
    /// daemon, not a client library. What was lost to a gap is not counted.
    pub async fn throughput(&self, name: &str, format: &str, bytes: usize) -> f64 {
        let mut stream = self.upgraded(name, format);
        let reader = std::thread::spawn(move || {
            let (mut left, mut lost) = (bytes, 0);
            let mut buffer = vec![0; 1 << 20];
            let (mut filled, mut at) = (0, 0);
            while left > 0 {
                // Everything of a frame but its header and, for text, its envelope is output.
                while let Some((header, length)) = frame_header(&buffer[at..filled])
                    && filled - at >= header + length
                {
                    let payload = &buffer[at + header..at + header + length];
                    let gap = gap_bytes(payload);
                    lost += gap;
                    left = left.saturating_sub(gap + output_bytes(buffer[at], payload));
                    at += header + length;
                }
                buffer.copy_within(at..filled, 0);
                filled -= at;
                at = 0;
                if left > 0 {
                    let count = stream.read(&mut buffer[filled..]).unwrap();
                    assert!(count > 0, "the daemon hung up with {left} bytes to go");
                    filled += count;
                }
            }
            bytes - lost
        });
        let began = Instant::now();
        self.post("/sandboxes/loud/start", "{}").await;
        while !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = began.elapsed();
        let received = reader.join().unwrap();
        self.wait_stopped(name).await;
        received as f64 / f64::from(1 << 20) / took.as_secs_f64()
    }

    fn upgraded(&self, name: &str, format: &str) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "GET /console/{name}?token={TOKEN}&format={format}&tail=0 HTTP/1.1\r\nHost: localhost\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        stream
    }
}

/// Lengths of a server's frame header and payload, if the header is all there.
fn frame_header(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? {
        126 => Some((4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())))),
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
            Some((10, usize::try_from(length).unwrap()))
        }
        short => Some((2, usize::from(short))),
    }
}

/// Bytes of output that a frame says are no longer kept.
fn gap_bytes(payload: &[u8]) -> usize {
    if !payload.starts_with(br#"{"from""#) {
        return 0;
    }
    let gap: Value = serde_json::from_slice(payload).unwrap();
    let at = |field: &str| usize::try_from(gap[field].as_u64().unwrap()).unwrap();
    at("to") - at("from")
}

/// Bytes of the program's output in a frame.
fn output_bytes(opcode: u8, payload: &[u8]) -> usize {
    const ENVELOPE: &[u8] = br#"{"type":"output","content":""#;
    match opcode & 0xF {
        2 => payload.len(),
        // The one character at the end of a line JSON writes as two.
        1 if payload.starts_with(ENVELOPE) => {
            let content = &payload[ENVELOPE.len()..payload.len() - 2];
            content.len() - content.iter().filter(|byte| **byte == b'\\').count()
        }
        _ => 0,
    }
}
