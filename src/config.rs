//! config.json: every key, its default, and what is wrong with it. Read once and passed by value.
//!
//! Two stages: [`Raw`] is the file, [`Config`] is what it means, with absolute paths and checked
//! values. All faults are reported together.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use sodium_model::violation::suggestion;
use sodium_model::{
    Allowed, Bounds, Ceilings, DiskRules, Enforce, IdRange, Isolation, Limits, Platform, Span,
    Totals,
};
use sodium_sys::trust::{self, Distrust, TrustError};

/// Far more than every key with a long value: more is no configuration, and not read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    pub host: String,
    pub port: u16,
    /// Empty or null: one is made at the first start, in `state_path`/token.
    pub token: Option<String>,
    pub isolation: Isolation,
    /// The weakest isolation a sandbox may ask for; null: the one above.
    pub isolation_floor: Option<Isolation>,
    /// When that, `network.enabled` and `maximum_limits` hold for what runs already.
    pub enforce: Enforce,
    pub sandboxes_path: PathBuf,
    pub runtimes_path: PathBuf,
    pub state_path: PathBuf,
    /// Null: a directory of its own under /run, or ./run where that is not ours to write.
    pub run_path: Option<PathBuf>,
    pub desired_path: PathBuf,
    pub images_path: PathBuf,
    pub store: StoreKind,
    pub default_limits: RawLimits,
    /// The most that one spec may ask for,
    pub maximum_limits: Ceilings,
    /// and that all may be promised together.
    pub totals: Totals,
    pub network: RawNetwork,
    /// The ids of the host's that sandboxes get.
    pub uids: IdRange,
    pub gvisor: RawGvisor,
    /// How disks are limited.
    pub disk: DiskRules,
    /// What the API serves at once, and how fast.
    pub api: Bounds,
    /// How much of its console each sandbox keeps.
    pub console_mb: u64,
    /// How long the workspace of a sandbox whose file was removed is kept.
    pub workspace_undo: Span,
}

/// Where the API writes what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// The database.
    Sqlite,
    /// Files in the directory of specs.
    Files,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    memory_mb: u64,
    cpu_percent: u64,
    disk_mb: u64,
    timeout_seconds: u64,
    max_processes: u64,
    max_files: u64,
    /// Bytes a second of console.
    output: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawNetwork {
    pub enabled: bool,
    pub allowed_hosts: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawGvisor {
    /// Null: where the system's packages put it.
    pub program: Option<PathBuf>,
    pub platform: PlatformChoice,
    /// Sandboxes that have been idle for so long are frozen until they are needed; 0s: never.
    pub idle_freeze: Span,
    /// By how much timers of sandboxes may be late; 0s: as the host has it.
    pub timer_slack: Span,
}

impl Default for RawGvisor {
    fn default() -> Self {
        Self {
            program: None,
            platform: PlatformChoice::default(),
            idle_freeze: Span(0),
            timer_slack: Span(10),
        }
    }
}

/// `auto` is the first that works of those that are fast everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformChoice {
    #[default]
    Auto,
    Systrap,
    Ptrace,
    Kvm,
}

impl PlatformChoice {
    fn asked(self) -> Option<Platform> {
        match self {
            Self::Auto => None,
            Self::Systrap => Some(Platform::Systrap),
            Self::Ptrace => Some(Platform::Ptrace),
            Self::Kvm => Some(Platform::Kvm),
        }
    }
}

impl RawLimits {
    fn meant(&self) -> Limits {
        let Self {
            memory_mb,
            cpu_percent,
            disk_mb,
            timeout_seconds,
            max_processes,
            max_files,
            output,
        } = *self;
        Limits {
            memory_mb,
            cpu_percent,
            disk_mb,
            timeout_seconds,
            max_processes,
            max_files,
            output,
            ..Limits::NONE
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        let Limits {
            memory_mb,
            cpu_percent,
            disk_mb,
            timeout_seconds,
            max_processes,
            max_files,
            output,
            ..
        } = Limits::DEFAULT;
        Self { memory_mb, cpu_percent, disk_mb, timeout_seconds, max_processes, max_files, output }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8081,
            token: None,
            isolation: Isolation::Bubblewrap,
            isolation_floor: None,
            enforce: Enforce::default(),
            sandboxes_path: "./sandboxes".into(),
            runtimes_path: "./runtimes".into(),
            state_path: "./state".into(),
            run_path: None,
            desired_path: "./desired".into(),
            images_path: "./images".into(),
            store: StoreKind::Sqlite,
            default_limits: RawLimits::default(),
            maximum_limits: Ceilings::default(),
            totals: Totals::default(),
            network: RawNetwork::default(),
            uids: IdRange::default(),
            gvisor: RawGvisor::default(),
            disk: DiskRules::default(),
            api: Bounds::default(),
            console_mb: 16,
            workspace_undo: Span::seconds(86_400),
        }
    }
}

/// What the file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub host: String,
    pub port: u16,
    pub token: Option<String>,
    pub isolation: Isolation,
    /// The floor, and what else a spec may ask for.
    pub allowed: Allowed,
    pub sandboxes_path: PathBuf,
    pub state_path: PathBuf,
    pub run_path: PathBuf,
    pub desired_path: PathBuf,
    pub images_path: PathBuf,
    pub store: StoreKind,
    pub default_limits: Limits,
    pub ids: IdRange,
    pub gvisor_program: Option<PathBuf>,
    /// `None`: whichever works.
    pub gvisor_platform: Option<Platform>,
    /// `None`: they are never frozen for being idle.
    pub gvisor_idle_freeze: Option<Span>,
    pub gvisor_timer_slack: Span,
    pub disk: DiskRules,
    pub bounds: Bounds,
    pub console_bytes: u64,
    pub workspace_undo: Span,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Somebody else may have written it, or may read the secret in it.
    #[error(transparent)]
    Distrusted(Distrust),
    /// Line and column are in the message.
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}: {}", path.display(), faults.join("; "))]
    Faults { path: PathBuf, faults: Vec<String> },
}

/// Reads the file, if nobody but root or the caller can have written it; relative paths in it are relative
/// to it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let syntax = |message| ConfigError::Syntax { path: path.to_owned(), message };
    let file = trust::read(path, FILE_BYTES_MAX).map_err(|error| match error {
        TrustError::Distrusted(why) => ConfigError::Distrusted(why),
        TrustError::Unreadable(source) => failed(source),
    })?;
    let text = std::str::from_utf8(&file.bytes);
    let text = text.map_err(|error| failed(Error::new(ErrorKind::InvalidData, error)))?;
    let base = std::path::absolute(path).map_err(failed)?;
    let base = base.parent().unwrap_or_else(|| Path::new("/"));
    let config = interpret(text, base).map_err(|fault| match fault {
        Fault::Syntax(message) => syntax(message),
        Fault::Values(faults) => ConfigError::Faults { path: path.to_owned(), faults },
    })?;
    if config.token.is_some() {
        file.check_secret().map_err(ConfigError::Distrusted)?;
    }
    Ok(config)
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Syntax(String),
    Values(Vec<String>),
}

fn interpret(text: &str, base: &Path) -> Result<Config, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // serde would take a list for the values in the order of the keys.
    if text.trim_start().starts_with('[') {
        return Err(Fault::Syntax("expected an object, found a list at line 1".to_owned()));
    }
    let raw: Raw =
        serde_json::from_slice(text.as_bytes()).map_err(|error| Fault::Syntax(hinted(&error)))?;
    let mut faults = Vec::new();
    let mut bounded = |name: &str, value: u64, max: u64| {
        if value > max {
            faults.push(format!("{name} is {value}, the most is {max}"));
        }
    };
    bounded("gvisor.timer_slack in milliseconds", raw.gvisor.timer_slack.0, 1000);
    let default_limits = raw.default_limits.meant();
    for name in Limits::ALL {
        let value = default_limits.get(name).unwrap_or(0);
        bounded(&format!("default_limits.{name}"), value, Limits::max_of(name));
    }
    bounded("console_mb", raw.console_mb, 64 << 10);
    if raw.console_mb == 0 {
        faults.push("console_mb is 0, the least is 1".to_owned());
    }
    faults.extend(raw.uids.fault());
    let floor = raw.isolation_floor.unwrap_or(raw.isolation);
    if !raw.isolation.satisfies(floor) {
        let (default, floor) = (raw.isolation.as_str(), floor.as_str());
        faults
            .push(format!("isolation is {default}, weaker than isolation_floor, which is {floor}"));
    }
    if !faults.is_empty() {
        return Err(Fault::Values(faults));
    }
    let at = |path: &Path| clean(&base.join(path));
    let state_path = at(&raw.state_path);
    Ok(Config {
        host: raw.host,
        port: raw.port,
        token: raw.token.filter(|token| !token.is_empty()),
        isolation: raw.isolation,
        allowed: Allowed {
            floor,
            network_enabled: raw.network.enabled,
            ceilings: raw.maximum_limits,
            totals: raw.totals,
            enforce: raw.enforce,
        },
        sandboxes_path: at(&raw.sandboxes_path),
        run_path: raw.run_path.map_or_else(|| run_path(&state_path, base), |path| at(&path)),
        state_path,
        desired_path: at(&raw.desired_path),
        images_path: at(&raw.images_path),
        store: raw.store,
        default_limits,
        ids: raw.uids,
        gvisor_program: raw.gvisor.program.map(|path| at(&path)),
        gvisor_platform: raw.gvisor.platform.asked(),
        gvisor_timer_slack: raw.gvisor.timer_slack,
        gvisor_idle_freeze: Some(raw.gvisor.idle_freeze).filter(|span| span.0 > 0),
        disk: raw.disk,
        bounds: raw.api,
        console_bytes: raw.console_mb << 20,
        workspace_undo: raw.workspace_undo,
    })
}

impl Config {
    /// Where the daemon's own user talks to it.
    pub fn socket(&self) -> PathBuf {
        self.run_path.join("sodiumd.sock")
    }
}

/// One directory per state directory, so that two daemons on one machine do not meet.
fn run_path(state: &Path, base: &Path) -> PathBuf {
    let hash =
        state.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    let ours = PathBuf::from(format!("/run/sodiumd-{hash:08x}"));
    // Whoever only reads a configuration makes nothing there.
    let may_make = std::fs::metadata("/run").is_ok_and(|run| run.uid() == sodium_sys::own_ids().0);
    if ours.is_dir() || may_make { ours } else { clean(&base.join("./run")) }
}

/// Without `.` components; `..` stays, since a symlink may precede it.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

/// serde names the unknown key and all known ones; what was meant is one of them.
fn hinted(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let mut quoted = text.split('`').skip(1).step_by(2);
    let unknown = text.starts_with("unknown field").then(|| quoted.next()).flatten();
    match unknown {
        Some(unknown) => format!("{text}{}", suggestion(unknown, quoted)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Fault> {
        interpret(text, Path::new("/etc/sodium"))
    }

    #[test]
    fn the_seeds_file_loads_and_paths_are_relative_to_it() {
        let config = read(
            r#"{"host": "0.0.0.0", "port": 8081, "token": "secret", "isolation": "bubblewrap",
                "sandboxes_path": "./sandboxes", "runtimes_path": "/opt/runtimes",
                "default_limits": {"memory_mb": 128},
                "network": {"enabled": true, "allowed_hosts": ["example.org"]},
                "run_path": "run"}"#,
        )
        .unwrap();
        assert_eq!(config.sandboxes_path, Path::new("/etc/sodium/sandboxes"));
        assert_eq!(config.run_path, Path::new("/etc/sodium/run"));
        assert_eq!((config.default_limits.memory_mb, config.default_limits.max_files), (128, 1024));
        assert_eq!(config.default_limits.output, 16 << 20);
        assert_eq!(config.allowed.floor, Isolation::Bubblewrap);
    }

    #[test]
    fn unknown_keys_are_named_and_faults_come_together() {
        let Err(Fault::Syntax(message)) = read(r#"{"prot": 1, "run_path": "r"}"#) else { panic!() };
        assert!(
            message.contains("`prot`") && message.contains("did you mean \"port\"?"),
            "{message}"
        );
        let fault = read(
            r#"{"console_mb": 0, "default_limits": {"memory_mb": 99999999},
            "isolation": "process", "isolation_floor": "gvisor", "run_path": "r"}"#,
        );
        let Err(Fault::Values(faults)) = fault else { panic!() };
        assert_eq!(faults.len(), 3, "{faults:?}");
    }

    #[test]
    fn a_file_with_a_token_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for (token, mode, loads) in [
            ("null", 0o644, true),
            ("\"\"", 0o644, true),
            ("\"secret\"", 0o600, true),
            ("\"secret\"", 0o400, true),
            ("\"secret\"", 0o640, false),
            ("\"secret\"", 0o604, false),
            ("null", 0o666, false),
        ] {
            std::fs::write(&path, format!(r#"{{"run_path": "r", "token": {token}}}"#)).unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            let loaded = load(&path);
            assert_eq!(loaded.is_ok(), loads, "{token} {mode:o}: {loaded:?}");
            if let Err(error) = loaded {
                let said = error.to_string();
                assert!(said.contains(": chmod ") && !said.contains("secret\""), "{said}");
            }
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let shipped: serde_json::Value =
            serde_json::from_str(include_str!("../config.json")).unwrap();
        let defaults = serde_json::to_value(Raw::default()).unwrap();
        assert_eq!(
            shipped.as_object().unwrap().keys().collect::<Vec<_>>(),
            defaults.as_object().unwrap().keys().collect::<Vec<_>>()
        );
        assert_eq!(shipped["default_limits"], defaults["default_limits"]);
    }
}
