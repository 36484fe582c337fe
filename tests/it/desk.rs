//! A real daemon in a directory of its own, for tests: started, asked, killed, started again. It cleans
//! up what its sandboxes left behind even when a test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use sodium_model::DiskRules;
use sodium_runtime::Driver;
use sodium_runtime::storage::volume::unmount_all;
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::Supervisor;
use sodium_runtime::supervise::host::{Host, Paths};

use crate::contract::{self, Answered};
use crate::disk::Disk;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// An answer that is larger has more of the same, and takes minutes.
const CHECKED_BYTES_MAX: usize = 1 << 20;
pub const TOKEN: &str = "a-token-for-tests";

/// An ordinary user.
const USER: &str = "4711";

/// Host uids of each daemon under test.
const UID_COUNT: u32 = 1024;

/// Where they begin: daemons of one host share none, and neither do test programs that follow each other while
/// something of the last one ends.
fn own_uids() -> u32 {
    static DESKS: AtomicU32 = AtomicU32::new(0);
    let (program, desk) = (std::process::id() % 128, DESKS.fetch_add(1, Ordering::Relaxed) % 1024);
    1_900_000_000 + (program * 1024 + desk) * UID_COUNT
}

pub struct Desk {
    /// Unmounted before the directory it lies in is removed.
    pub disk: Option<Disk>,
    pub dir: tempfile::TempDir,
    pub daemon: Option<Child>,
    /// A program that starts the daemon, with its arguments; none: we do.
    pub within: Vec<&'static str>,
    /// The daemon's, with its shim beside it.
    program: PathBuf,
    pub port: u16,
    state: PathBuf,
    http: reqwest::Client,
}

/// An answer: status and JSON.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub json: Value,
}

/// Stands still because nobody needs it.
pub fn is_frozen(sandbox: &Value) -> bool {
    let conditions = sandbox["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Running" && one["reason"] == "Frozen")
}

impl Desk {
    /// A running daemon with the usual configuration.
    pub async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// A running daemon whose configuration has these keys too.
    pub async fn with(extra: Value) -> Self {
        let mut desk = Self::prepared(extra);
        desk.start().await;
        desk
    }

    /// Everything but the daemon.
    pub fn prepared(extra: Value) -> Self {
        Self::prepared_in(&std::env::temp_dir(), extra)
    }

    /// The same below this directory.
    pub fn prepared_in(above: &Path, extra: Value) -> Self {
        // With a name that has to be quoted.
        let dir = tempfile::Builder::new().prefix("sodium it-").tempdir_in(above).unwrap();
        fs::create_dir(dir.path().join("desired")).unwrap();
        let mut config = json!({
            "port": 0, "token": TOKEN, "isolation_floor": "process", "run_path": "./run",
            "store": crate::STORE, "uids": {"first": own_uids(), "count": UID_COUNT},
            // Not tried by every daemon of every test.
            "gvisor": {"program": "/nowhere/runsc"},
            "images_path": Path::new(env!("CARGO_MANIFEST_DIR")).join("images"),
        });
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        let path = dir.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        // There is a token in it.
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, own).unwrap();
        let state = dir.path().join(config["state_path"].as_str().unwrap_or("state"));
        // A daemon that is killed and started again may be at the same address.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_sodiumd"));
        Self { disk: None, dir, daemon: None, within: Vec::new(), program, port: 0, state, http }
    }

    /// A running daemon of an ordinary user, with everything where that user may go.
    pub async fn rootless() -> Self {
        let mut desk = Self::prepared(json!({"images_path": "./images"}));
        for program in ["sodiumd", "sodium-shim"] {
            fs::copy(desk.program.with_file_name(program), desk.path(program)).unwrap();
        }
        desk.program = desk.path("sodiumd");
        let given = Command::new("chown").args(["-R", USER]).arg(desk.dir.path()).status();
        assert!(given.unwrap().success());
        desk.within = vec!["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"];
        desk.start().await;
        desk
    }

    /// A small disk of its own, mounted at this name.
    pub fn add_disk(&mut self, name: &str, megabytes: u64) {
        self.disk = Some(Disk::new(&self.path(name), megabytes));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the files of a sandbox are, once it was started.
    pub fn workspace(&self, sandbox: &Value) -> PathBuf {
        let uid = sandbox["metadata"]["uid"].as_str().unwrap().parse().unwrap();
        let sandboxes = self.path("sandboxes");
        Workspaces::of(&sandboxes, true, &DiskRules::default()).path(uid)
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) {
        let log = self.path("log");
        let from = fs::metadata(&log).map_or(0, |meta| meta.len());
        self.daemon = Some(self.spawn());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let text = text.get(usize::try_from(from).unwrap()..).unwrap_or_default();
            let address = text.split_once("http://").and_then(|(_, rest)| rest.split_once(':'));
            if let Some((_, rest)) = address {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                self.port = digits.parse().unwrap();
                return;
            }
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "daemon did not start: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let program = self.program.to_str().unwrap();
        let mut words = self.within.iter().copied().chain([program, "run"]);
        Command::new(words.next().unwrap())
            .args(words)
            .arg("--config")
            .arg(self.path("config.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_as(Some(TOKEN), method, path, body).await
    }

    pub async fn ask_as(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: &str,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method.clone(), self.url(path)).body(body.to_owned());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let media =
            response.headers().get(CONTENT_TYPE).map(|media| media.to_str().unwrap().to_owned());
        let bytes = response.bytes().await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let media = media.as_deref().unwrap_or_default();
        if text.len() <= CHECKED_BYTES_MAX {
            let method = method.as_str();
            contract::check(&Answered { method, path, status, media, text: &text });
        }
        Answer { status, json: serde_json::from_slice(&bytes).unwrap_or(Value::String(text)) }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask("POST", path, &body).await
    }

    /// Declares by file.
    pub fn write_spec(&self, file: &str, name: &str, spec: &Value) {
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": name}, "spec": spec});
        let path = self.path("desired").join(file);
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, document.to_string()).unwrap();
        fs::rename(&temporary, &path).unwrap();
    }

    pub async fn sandbox(&self, name: &str) -> Value {
        self.get(&format!("/v1/sandboxes/{name}")).await.json
    }

    /// Waits until a sandbox is as wanted, and returns it.
    #[track_caller]
    pub fn wait_for<'d>(
        &'d self,
        name: &'d str,
        what: &'d str,
        done: impl Fn(&Value) -> bool + 'd,
    ) -> impl Future<Output = Value> + 'd {
        let caller = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let sandbox = self.sandbox(name).await;
                if done(&sandbox) {
                    return sandbox;
                }
                if Instant::now() > deadline {
                    panic!("{caller}: {name} is not {what}: {sandbox:#}\n{}", self.log());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    pub async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_for(name, phase, |sandbox| sandbox["status"]["phase"] == phase).await
    }

    pub async fn logs(&self, name: &str) -> String {
        match self.get(&format!("/v1/sandboxes/{name}/logs")).await.json {
            Value::String(text) => text,
            // A number alone is JSON too.
            other => other.to_string(),
        }
    }

    pub async fn wait_logs(&self, name: &str, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let logs = self.logs(name).await;
            if logs.contains(text) {
                return logs;
            }
            assert!(Instant::now() < deadline, "{text:?} is not in {logs:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The daemon's command line, against this daemon.
    pub fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let program = self.program.to_str().unwrap();
        // As the daemon's own user.
        let user = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"];
        let user = user.iter().filter(|_| self.within.first() == Some(&"setpriv"));
        let mut words = user.copied().chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--config").arg(self.path("config.json")).args(args);
        command
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.kill();
        self.end_sandboxes();
        unmount_all(&self.path("sandboxes"));
    }
}

impl Desk {
    fn end_sandboxes(&self) {
        let (run, state) = (self.path("run"), self.state.clone());
        if !run.exists() || !state.exists() {
            return;
        }
        let paths = Paths { run, state, shim: PathBuf::new() };
        let workspaces = Workspaces::of(&self.path("sandboxes"), true, &DiskRules::default());
        let host = std::sync::Arc::new(Host::open(paths, workspaces, 1 << 20, u64::MAX).unwrap());
        let driver = Supervisor::process(std::sync::Arc::clone(&host));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = host.residues();
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for iid in left {
                let _ = driver.kill_shim(&iid);
                let _ = driver.clean_up(&iid);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        host.cgroups.remove();
    }
}
