//! The load: what is asked of the daemon, how often, and what came of it.
//!
//! A seed decides who does what to whom; each task has dice of its own, so that what one does depends on
//! no other's luck. Nothing here retries in silence: an answer that is no success and a connection that
//! ends by itself are failures of the run.

mod changes;
mod readers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::desk::{Desk, TOKEN, document};

/// Declared sandboxes are spread over so many values of a label, so that a list by one is a page.
pub const SHARDS: usize = 200;
/// Edits whose outcome is looked at in the end.
const EDITS_CHECKED: usize = 100;

/// Where the load takes place.
pub struct Scene {
    pub address: SocketAddr,
    pub seed: u64,
    pub stop: CancellationToken,
    pub tally: Tally,
    http: reqwest::Client,
    desired: PathBuf,
    expected: Mutex<Expected>,
}

/// What should be declared when the load ends.
#[derive(Default)]
struct Expected {
    /// The last edit of each sandbox that was edited.
    edits: BTreeMap<usize, u64>,
    /// Files that were added and not removed.
    added: Vec<String>,
}

/// What came of it.
#[derive(Default)]
pub struct Tally {
    failures: Mutex<Vec<String>>,
    /// Stops, starts, puts and deletes.
    pub changes: AtomicU64,
    pub edits: AtomicU64,
    pub returns: AtomicU64,
    pub console_bytes: AtomicU64,
    pub lines_followed: AtomicU64,
    /// Clients that took nothing, and whose connection the daemon then closed, as it should,
    pub let_go: AtomicU64,
    /// or did not.
    pub kept: AtomicU64,
}

impl Tally {
    pub fn fail(&self, text: String) {
        self.failures.lock().unwrap().push(text);
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    pub fn read(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }

    fn add(count: &AtomicU64, more: usize) {
        count.fetch_add(more as u64, Ordering::Relaxed);
    }
}

/// Chance that can be had again.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, task: u64) -> Self {
        Self(seed.wrapping_mul(0x0009_E377).wrapping_add(task))
    }

    /// A number below `sides`: splitmix64.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let below = (mixed ^ (mixed >> 31)) % sides as u64;
        usize::try_from(below).expect("below a usize")
    }

    fn between(&mut self, from_ms: usize, to_ms: usize) -> Duration {
        Duration::from_millis((from_ms + self.roll(to_ms - from_ms)) as u64)
    }
}

impl Scene {
    pub fn new(desk: &Desk, seed: u64) -> Self {
        Self {
            address: ([127, 0, 0, 1], desk.port).into(),
            seed,
            stop: CancellationToken::new(),
            tally: Tally::default(),
            http: reqwest::Client::new(),
            desired: desk.path("desired"),
            expected: Mutex::default(),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> Value {
        self.ask(self.http.get(self.url(path)), path).await
    }

    /// Null for what failed, which is then on record.
    async fn ask(&self, request: reqwest::RequestBuilder, what: &str) -> Value {
        let answer = async {
            let answer = request.bearer_auth(TOKEN).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        match answer.await {
            Ok((status, text)) if status.is_success() => {
                serde_json::from_str(&text).unwrap_or_default()
            }
            Ok((status, text)) => {
                self.tally.fail(format!("{what}: {status} {text}"));
                Value::Null
            }
            Err(error) => {
                self.tally.fail(format!("{what}: {error:?}"));
                Value::Null
            }
        }
    }

    /// Waits, and says whether the load goes on.
    async fn pause(&self, time: Duration) -> bool {
        // Both arms only wait.
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}

/// What one of the ten thousand says after so many edits.
pub fn declared(name: &str, shard: usize, edit: u64) -> Value {
    let spec = json!({"command": ["true"], "state": "stopped", "env": {"EDIT": edit.to_string()}});
    let mut document = document(name, &spec);
    document["metadata"]["labels"] = json!({"shard": (shard % SHARDS).to_string()});
    document
}

/// Starts all that run.
pub async fn start_all(scene: &Arc<Scene>, count: usize) {
    let starts = (0..count).map(|index| async move {
        changes::put(scene, &format!("r{index}"), &changes::running(index % 5 == 0)).await;
    });
    futures_util::stream::iter(starts).buffer_unordered(16).collect::<Vec<_>>().await;
    for index in 0..count {
        let path = format!("/v1/sandboxes/r{index}/start?wait=60s");
        scene.ask(scene.http.post(scene.url(&path)).body("{}"), &path).await;
    }
    let failures = scene.tally.failures();
    assert!(failures.is_empty(), "{count} sandboxes could not be started: {}", failures[0]);
}

/// Begins everything but the judged reads.
pub fn begin(scene: &Arc<Scene>, running: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for index in 0..running {
        let scene = Arc::clone(scene);
        match index % 10 {
            0 => tasks.spawn(readers::never_reads(scene, index)),
            5 => tasks.spawn(readers::comes_and_goes(scene, index)),
            _ => tasks.spawn(readers::reads(scene, index)),
        };
    }
    for number in 0..4 {
        tasks.spawn(readers::follows_log(Arc::clone(scene), number * 10 + 1));
    }
    for _ in 0..3 {
        tasks.spawn(readers::watches(Arc::clone(scene)));
    }
    tasks.spawn(readers::watches_anew(Arc::clone(scene)));
    tasks.spawn(readers::follows_events(Arc::clone(scene)));
    tasks.spawn(changes::stops_and_starts(Arc::clone(scene), running));
    tasks.spawn(changes::puts_and_deletes(Arc::clone(scene)));
    tasks.spawn(changes::edits(Arc::clone(scene), 10_000));
    tasks
}

/// What is not declared as it should be, once the directory was looked at.
pub async fn astray(scene: &Scene, count: usize) -> Vec<String> {
    let (edits, added) = {
        let expected = scene.expected.lock().unwrap();
        (expected.edits.clone(), expected.added.clone())
    };
    let mut astray = Vec::new();
    // Several rounds of the directory.
    for _ in 0..60 {
        astray.clear();
        let list = scene.get("/v1/sandboxes").await;
        let found = list["items"].as_array().map_or(0, Vec::len);
        if found != count + added.len() {
            astray.push(format!("{found} sandboxes, not {}", count + added.len()));
        }
        for name in &added {
            let is_there = |one: &Value| one["metadata"]["name"] == name.as_str();
            if !list["items"].as_array().is_some_and(|items| items.iter().any(is_there)) {
                astray.push(format!("{name} is not there"));
            }
        }
        for (index, edit) in edits.iter().rev().take(EDITS_CHECKED) {
            let sandbox = scene.get(&format!("/v1/sandboxes/s{index}")).await;
            let found = &sandbox["spec"]["env"]["EDIT"];
            if found.as_str() != Some(edit.to_string().as_str()) {
                astray.push(format!("s{index} has edit {found}, not {edit}"));
            }
        }
        if astray.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    astray
}
