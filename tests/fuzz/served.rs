//! The whole API over a store of its own and a machine kept in memory, with the loop running; and what
//! must hold of any sequence of requests to it.
//!
//! Time is virtual: it passes when nothing else is to be done, so that waiting costs nothing.
//!
//! ```text
//!   store: files            (optional: what the API declares goes into the directory of specs)
//!   PUT /v1/sandboxes/web
//!   if-none-match: *
//!
//!   {"apiVersion": ...}
//!   %%%
//!   POST /v1/sandboxes/web/restart?wait=1
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value, json};
use sodium_model::admission::{Rules, admit};
use sodium_model::draft::read_document;
use sodium_model::{Isolation, Spec};
use sodium_runtime::Driver;
use sodium_runtime::fake::FakeDriver;
use sodium_sys::clock;
use sodiumd::api::{self, Api, Declare};
use sodiumd::desired::watch::{Source, Watch};
use sodiumd::desired::write::Writer;
use sodiumd::live::Live;
use sodiumd::reconcile::activity::Activity;
use sodiumd::reconcile::console::Consoles;
use sodiumd::reconcile::queue::Queue;
use sodiumd::reconcile::{self, Handle, World};
use sodiumd::store::{Store, database_path};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Requests in one input, at most.
const REQUEST_COUNT_MAX: usize = 8;
/// A client that leaves when nothing comes. Nothing of what was asked for is taken back by that.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer without an end is looked at for so long.
const LOOK: Duration = Duration::from_secs(2);

/// Requests from whoever has the token, in sequence.
pub fn http(bytes: &[u8]) {
    let parts = split(bytes, b"\n%%%\n");
    let files = parts[0].strip_prefix(b"store: files\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let served = Served::start(files.is_some());
        for part in std::iter::once(files.unwrap_or(parts[0]))
            .chain(parts[1..].iter().copied())
            .take(REQUEST_COUNT_MAX)
        {
            served.ask_and_check(part).await;
        }
        served.end().await;
    });
}

struct Served {
    dir: tempfile::TempDir,
    store: Store,
    rules: Arc<Rules>,
    router: Router,
    watch: Watch,
    watching: std::thread::JoinHandle<()>,
    looping: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    json: Value,
}

impl Served {
    fn start(in_files: bool) -> Self {
        let dir = super::scratch();
        let desired = dir.path().join("desired");
        std::fs::create_dir(&desired).unwrap();
        let store = Store::open(&database_path(dir.path())).unwrap();
        let queue = Arc::new(Queue::default());
        let rules = Arc::new(super::rules());
        let live = Arc::new(Live::new(super::rules()));
        let world = Arc::new(world(&store, &queue, &live));
        let handle = Handle::new(Arc::clone(&world), Arc::clone(&queue));
        let looked_at = handle.clone();
        let (watch, watching) = Watch::start(Source {
            root: desired.clone(),
            store: store.clone(),
            rules: Arc::clone(&live),
            clock: clock::wall_ms,
            changed: Box::new(move |name| looked_at.look_at(name)),
        });
        if !in_files {
            // Nothing is there, and looking for it would cost as much as all else.
            watch.stop();
        }
        let shutdown = CancellationToken::new();
        let looping = tokio::spawn(reconcile::run(world, queue, shutdown.clone(), now_ms));
        let about =
            api::About { version: "0", started_at_ms: 0, address: Arc::default(), boot_ms: now_ms };
        let router = api::router(
            Arc::new(Api {
                store: store.clone(),
                handle,
                rules: live,
                auth: api::Auth::new("token".to_owned()),
                tickets: api::Tickets::default(),
                declare: match in_files {
                    true => Declare::Files(Arc::new(Writer::new(&desired))),
                    false => Declare::Sqlite,
                },
                watch: watch.clone(),
                bounds: Live::default(),
                load: api::Load::default(),
                audit: api::Audit::default(),
                about,
                clock: now_ms,
                running: Default::default(),
            }),
            true,
        );
        Self { dir, store, rules, router, watch, watching, looping, shutdown }
    }

    /// Sends a request and looks at what comes of it. What is none is left out.
    async fn ask_and_check(&self, part: &[u8]) {
        let Some((request, method, target, body)) = request(part) else { return };
        let Some(answer) = self.send(request).await else { return };
        let place = || format!("{method} {target}: {answer:?}");
        let refused = answer.status >= 400;
        assert!(answer.status < 500 || answer.status == 504, "{}", place());
        let told = |key: &str| answer.json[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(!refused || (told("error") && told("code")), "{}", place());
        for violation in answer.json["violations"].as_array().into_iter().flatten() {
            assert!(violation["path"].is_string() && violation["message"].is_string());
        }
        if refused {
            return;
        }
        if method == "PUT" {
            self.reads_back(&answer.json, &body).await;
        }
        let dry = answer.json["dry_run"] == json!(true);
        if target.starts_with("/v1/apply") && method == "POST" && !dry {
            let again = Request::post("/v1/apply?dry_run=1").body(Body::from(body)).unwrap();
            let again = self.send(again).await.expect("nothing is waited for");
            for result in again.json["results"].as_array().unwrap() {
                assert_eq!(result["action"], "unchanged", "{again:?}");
            }
        }
    }

    /// What was put is what is shown, and what is shown can be put and changes nothing.
    async fn reads_back(&self, answer: &Value, body: &[u8]) {
        let mut put: Value = serde_json::from_slice(body).expect("it was understood");
        let put = declared(&mut put);
        let document = read_document(&put.clone().into()).expect("it was accepted");
        let want = admit(&document.draft, &self.rules).expect("it was accepted");
        let name = document.name.as_str();
        let path = format!("/v1/sandboxes/{name}");
        let shown = self.send(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(shown.status, 200, "{shown:?}");
        let got: Spec = serde_json::from_value(shown.json["spec"].clone()).unwrap();
        assert_eq!(got, want);
        assert_eq!(shown.json["metadata"]["labels"], json!(document.labels));
        let mut again = shown.json;
        let again = declared(&mut again).to_string();
        let again = Request::put(&path).body(Body::from(again)).unwrap();
        let again = self.send(again).await.expect("nothing is waited for");
        let generation = |json: &Value| json["metadata"]["generation"].clone();
        assert_eq!((again.status, generation(&again.json)), (200, generation(answer)), "{again:?}");
    }

    /// `None`: the client has left before there was an answer.
    async fn send(&self, request: Request<Body>) -> Option<Answer> {
        let response = timeout(PATIENCE, self.router.clone().oneshot(request)).await.ok()?;
        let response = response.unwrap_or_else(|never| match never {});
        let status = response.status().as_u16();
        let body = timeout(LOOK, to_bytes(response.into_body(), usize::MAX)).await;
        let bytes = body.map(|body| body.expect("an answer does not break off"));
        let json = serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default();
        Some(Answer { status, json })
    }

    /// Whatever is in the store by now could have been declared as it is.
    async fn end(self) {
        self.shutdown.cancel();
        self.looping.await.expect("the loop does not panic");
        self.watch.stop();
        self.watching.join().expect("nor does who looks at the directory");
        for sandbox in self.store.snapshot().sandboxes.values() {
            super::declares_itself(&sandbox.name, &sandbox.labels, &sandbox.spec, &self.rules);
        }
        drop(self.dir);
    }
}

fn world(store: &Store, queue: &Arc<Queue>, rules: &Arc<Live<Rules>>) -> World {
    let fake: Arc<dyn Driver> = Arc::new(FakeDriver::default().dear());
    let runtime = tokio::runtime::Handle::current();
    World {
        store: store.clone(),
        drivers: [(Isolation::Bubblewrap, Arc::clone(&fake)), (Isolation::Gvisor, fake)].into(),
        host: None,
        rules: Arc::clone(rules),
        boot_id: "boot".to_owned(),
        consoles: Arc::new(Consoles::new(Arc::clone(queue), runtime, store.epoch(), None)),
        sessions: Arc::default(),
        activity: Activity::default(),
        meter: Default::default(),
        turns: Default::default(),
        idle_freeze: Live::default(),
    }
}

/// Virtual, since some day in 2026. Only threads of the runtime have it.
fn now_ms() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let passed = Instant::now().saturating_duration_since(*BEGAN);
    1_780_000_000_000 + u64::try_from(passed.as_millis()).unwrap()
}

/// The request, its method, its target and its body.
fn request(part: &[u8]) -> Option<(Request<Body>, String, String, Vec<u8>)> {
    let blank = part.windows(2).position(|two| two == b"\n\n");
    let (head, body) = blank.map_or((part, &[][..]), |at| (&part[..at], &part[at + 2..]));
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let method = std::str::from_utf8(&first[..space]).ok()?;
    if !["GET", "POST", "PUT", "DELETE", "PATCH"].contains(&method) {
        return None;
    }
    let target = &first[space + 1..];
    let mut request = Request::builder().method(method).uri(target);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    let request = request.body(Body::from(body.to_vec())).ok()?;
    // Whatever else there is never comes from a connection.
    let target = target.starts_with(b"/").then(|| String::from_utf8_lossy(target).into_owned())?;
    Some((request, method.to_owned(), target, body.to_vec()))
}

/// The part of a document that declares.
fn declared(document: &mut Value) -> Value {
    let mut parts: BTreeMap<&str, Value> = BTreeMap::new();
    for key in ["apiVersion", "kind", "metadata", "spec"] {
        if let Some(part) = document.get_mut(key).map(Value::take) {
            parts.insert(key, part);
        }
    }
    if let Some(metadata) = parts.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "labels"));
    }
    json!(parts)
}

fn split<'b>(bytes: &'b [u8], by: &[u8]) -> Vec<&'b [u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(by.len()).position(|found| found == by) {
        parts.push(&rest[..at]);
        rest = &rest[at + by.len()..];
    }
    parts.push(rest);
    parts
}
