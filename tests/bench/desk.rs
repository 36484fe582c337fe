//! A daemon to measure, and how to read what it costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

pub const TOKEN: &str = "a-token-for-benchmarks";

pub struct Desk {
    pub dir: tempfile::TempDir,
    /// On a file system in memory, as /run is wherever an init system made it.
    pub run: tempfile::TempDir,
    pub daemon: Option<Child>,
    pub port: u16,
    pub http: reqwest::Client,
}

/// Each daemon of a run has host uids of its own, four for each of those that are declared, and to spare.
const UIDS: u32 = 50_000;
static DESKS: AtomicU32 = AtomicU32::new(0);

impl Desk {
    pub fn prepared(extra: Value) -> Self {
        let dir = tempfile::Builder::new().prefix("sodium-bench-").tempdir().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), mode).unwrap();
        fs::create_dir(dir.path().join("desired")).unwrap();
        let run = tempfile::Builder::new().prefix("sodium-bench-").tempdir_in("/dev/shm").unwrap();
        // As bare as the references; volumes have a measure of their own.
        let number = DESKS.fetch_add(1, Ordering::Relaxed);
        let mut config = json!({"port": 0, "token": TOKEN, "run_path": run.path(),
            "uids": {"first": 2_050_000_000 + number * UIDS, "count": UIDS},
            "images_path": "./images", "disk": {"mechanism": "polled"}});
        for (key, value) in extra.as_object().unwrap() {
            config[key] = value.clone();
        }
        let path = dir.path().join("config.json");
        fs::write(&path, config.to_string()).unwrap();
        // There is a token in it.
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, own).unwrap();
        Self { dir, run, daemon: None, port: 0, http: reqwest::Client::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
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

    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn get(&self, path: &str) -> Value {
        let sent = self.http.get(self.url(path)).bearer_auth(TOKEN).send().await;
        sent.unwrap().json().await.unwrap()
    }

    pub async fn wait_declared(&self, count: usize) {
        let last = format!("/v1/sandboxes/s{}", count - 1);
        while self.get(&last).await["status"]["observed_generation"] != 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
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
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.kill();
        sodium_runtime::storage::volume::unmount_all(&self.path("sandboxes"));
    }
}

/// Saves a spec as an editor does: nobody ever sees half of it.
pub fn save(directory: &Path, name: &str, document: &Value) {
    let path = directory.join(format!("{name}.yaml"));
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, document.to_string()).unwrap();
    fs::rename(temporary, path).unwrap();
}

pub fn document(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec})
}

/// Proportional set size: what a process has to itself, and its share of the rest. None: it has ended.
pub fn pss_kib(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
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
