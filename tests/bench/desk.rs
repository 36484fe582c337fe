//! A daemon to measure, and how to read what it costs.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

const TOKEN: &str = "a-token-for-benchmarks";

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

pub struct Desk {
    pub dir: tempfile::TempDir,
    /// On a file system in memory, as /run is wherever an init system made it.
    pub run: tempfile::TempDir,
    daemon: Option<Child>,
    port: u16,
    http: reqwest::Client,
}

impl Desk {
    pub async fn new(extra: Value) -> Self {
        let mut desk = Self::prepared(extra);
        desk.start().await;
        desk
    }

    pub fn prepared(extra: Value) -> Self {
        let dir = tempfile::Builder::new().prefix("sodium-bench-").tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), mode).unwrap();
        fs::create_dir(dir.path().join("desired")).unwrap();
        let run = tempfile::Builder::new().prefix("sodium-bench-").tempdir_in("/dev/shm").unwrap();
        let mut config = json!({"port": 0, "token": TOKEN, "run_path": run.path(),
            "images_path": "./images"});
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Self { dir, run, daemon: None, port: 0, http: reqwest::Client::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) {
        let log = self.path("log");
        let file = fs::File::create(&log).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_sodiumd"))
            .args(["run", "--config"])
            .arg(self.path("config.json"))
            .env("SODIUMD_LOG", "warn")
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        loop {
            let text = fs::read_to_string(&log).unwrap();
            if let Some((_, rest)) = text.split_once("http://127.0.0.1:")
                && rest.contains('\n')
            {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                self.port = digits.parse().unwrap();
                break;
            }
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {text}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while self.http.get(self.url("/healthz")).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
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

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
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
        let root = sodiumd::driver::host::cgroups_of(self.run.path());
        root.remove();
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn get(&self, path: &str) -> Value {
        let sent = self.http.get(self.url(path)).bearer_auth(TOKEN).send().await;
        sent.unwrap().json().await.unwrap()
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

    pub async fn wait_stopped(&self, name: &str) {
        loop {
            let sandbox = self.get(&format!("/v1/sandboxes/{name}")).await;
            if sandbox["status"]["instance"].is_null() && sandbox["status"]["phase"] != "Pending" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Follows the events until so many have started. Looking at lists would be measured too.
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

    /// Until so many starts have succeeded after that event.
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

    pub async fn wait_declared(&self, count: usize) {
        let last = format!("/v1/sandboxes/s{}", count - 1);
        while self.get(&last).await["status"]["observed_generation"] != 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    pub fn declare(&self, count: usize) {
        for index in 0..count {
            self.write_spec(index, &json!({"command": ["true"], "state": "stopped"}));
        }
    }

    fn write_spec(&self, index: usize, spec: &Value) {
        let path = self.path("desired").join(format!("s{index}.yaml"));
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, document(&format!("s{index}"), spec).to_string()).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// Saves one spec after another; for each, milliseconds from saved to its step begun.
    pub async fn edits(&self, count: usize) -> Vec<f64> {
        let mut times = Vec::new();
        for index in 0..count {
            let saved = sodiumd::sys::clock::wall_ms();
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
            let begun: sodiumd::model::Time = serde_json::from_value(json!(begun)).unwrap();
            times.push(begun.0.saturating_sub(saved) as f64);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        times
    }

    pub fn shim_pids(&self) -> Vec<u32> {
        let locks = fs::read_dir(self.run.path().join("i")).unwrap().flatten();
        locks
            .filter_map(|entry| {
                fs::read_to_string(entry.path().join("lock")).ok()?.trim().parse().ok()
            })
            .collect()
    }

    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
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

    pub async fn delete_all(&self, count: usize) {
        let deletes = (0..count).map(|index| {
            let url = self.url(&format!("/sandboxes/s{index}"));
            self.http.delete(url).bearer_auth(TOKEN).send()
        });
        futures_util::stream::iter(deletes).buffer_unordered(32).collect::<Vec<_>>().await;
    }

    /// MiB/s from a sandbox to a WebSocket. The reader only walks the frames: what is measured is the
    /// daemon, not a client library.
    pub async fn throughput(&self, name: &str, format: &str, bytes: usize) -> f64 {
        let mut stream = self.upgraded(name, format);
        let reader = std::thread::spawn(move || {
            let mut left = bytes;
            let mut buffer = vec![0; 1 << 20];
            let (mut filled, mut at) = (0, 0);
            while left > 0 {
                // Everything of a frame but its header and, for text, its envelope is output.
                while let Some((header, length)) = frame_header(&buffer[at..filled])
                    && filled - at >= header + length
                {
                    let payload = &buffer[at + header..at + header + length];
                    left = left.saturating_sub(output_bytes(buffer[at], payload));
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
        });
        let began = Instant::now();
        self.post("/sandboxes/loud/start", "{}").await;
        while !reader.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = began.elapsed();
        reader.join().unwrap();
        self.wait_stopped(name).await;
        bytes as f64 / f64::from(1 << 20) / took.as_secs_f64()
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

/// Bytes of the program's output in a frame.
fn output_bytes(opcode: u8, payload: &[u8]) -> usize {
    const ENVELOPE: &[u8] = br#"{"type":"output","content":""#;
    assert!(!payload.starts_with(br#"{"from""#), "a gap");
    match opcode & 0xF {
        2 => payload.len(),
        // Each line of 64 bytes has one character that JSON writes as two.
        1 if payload.starts_with(ENVELOPE) => (payload.len() - ENVELOPE.len() - 2) * 64 / 65,
        _ => 0,
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.kill();
    }
}

fn document(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec})
}

/// Proportional set size: what a process has to itself, and its share of the rest.
pub fn pss_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

pub fn median(values: &[f64]) -> f64 {
    sorted(values)[values.len() / 2]
}

pub fn p99(values: &[f64]) -> f64 {
    sorted(values)[(values.len() * 99 / 100).min(values.len() - 1)]
}
