//! What is tried, one probe after the other: each a spec that differs from the subject's in nothing but what the
//! probe needs.

use serde_json::{Value, json};

use crate::cli::prove::Host;
use sodium_sys::attack;

/// How the shim is called where it is the probe, and the word that says so.
const PROBE: [&str; 2] = ["/sodium-init", "probe"];
/// A time limit to be met within a moment, and one that leaves gVisor time to start on a slow machine.
const TIME_SECONDS: u64 = 2;
const TIME_SECONDS_GVISOR: u64 = 5;
/// How long the cpus are kept busy: for so long the ledger can be read, too.
const BUSY_MS: u64 = 2_500;
/// And the second time. A host that stood still for a moment has the sandbox pay for it in the periods after: over a longer
/// time that evens out, and what nothing limits does not.
const BUSY_LONGER_MS: u64 = 15_000;
/// How long one that does not go is waited for.
const GRACE: &str = "1s";
/// No probe needs longer, and none should be ended by another limit than the one it tries.
const TIME_ENOUGH: u64 = 170;
/// A file that would be written through a link out of the workspace.
pub(super) const LINKED: &str = "prove-link/sodium-prove";

/// One probe.
pub(super) struct Order {
    pub what: What,
    /// The limit as it was asked for; 0 is none.
    pub limit: u64,
    pub isolation: String,
    pub spec: Value,
    /// That it cannot is what is hoped for.
    pub may_not_start: bool,
}

impl Order {
    /// The time limit that is tried, whatever the subject's is.
    pub(super) fn time_seconds(&self) -> u64 {
        if self.isolation == "gvisor" { TIME_SECONDS_GVISOR } else { TIME_SECONDS }
    }

    /// The same for longer, where one look may have been unlucky.
    pub(super) fn longer(mut self) -> Option<Self> {
        (self.what == What::Cpu).then(|| {
            self.spec["command"] = command(["cpu".to_owned(), BUSY_LONGER_MS.to_string()]);
            self
        })
    }
}

/// What a probe tries to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Memory,
    Cpu,
    Disk,
    Inodes,
    Processes,
    Files,
    Time,
    Output,
    Io,
    Host,
    Network,
    /// Everything else that a tenant may try, each with a verdict of its own.
    Attacks,
    /// Makes the link,
    Link,
    /// which the daemon is then to follow.
    LinkFollowed,
}

impl std::fmt::Display for What {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Memory => "memory_mb",
            Self::Cpu => "cpu_percent",
            Self::Disk => "disk_mb",
            Self::Inodes => "inodes",
            Self::Processes => "max_processes",
            Self::Files => "max_files",
            Self::Time => "timeout_seconds",
            Self::Output => "output",
            Self::Io => "io",
            Self::Host => "host",
            Self::Network => "network",
            Self::Attacks => "attacks",
            Self::Link | Self::LinkFollowed => "workspace",
        })
    }
}

/// The subject's spec before anything is tried.
pub(super) fn stopped(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["state"] = json!("stopped");
    spec["command"] = json!(PROBE);
    spec
}

/// Everything that is tried with this spec, of which every default is filled in.
pub(super) fn all(spec: &Value, host: &Host) -> Vec<Order> {
    let limit = |name: &str| spec["limits"][name].as_u64().unwrap_or(0);
    let isolation = spec["isolation"].as_str().unwrap_or_default().to_owned();
    let order = |what, name: &str, words: Vec<String>| {
        let mut probe = spec.clone();
        probe["command"] = command(words);
        probe["state"] = json!("running");
        probe["tty"] = json!(false);
        probe["files"] = json!({});
        probe["restart"]["policy"] = json!("never");
        probe["stop"] = json!({"signal": "SIGTERM", "grace": GRACE});
        probe["limits"]["timeout_seconds"] = json!(TIME_ENOUGH);
        Order {
            what,
            limit: limit(name),
            isolation: isolation.clone(),
            spec: probe,
            may_not_start: false,
        }
    };
    let words = |word: &str, more: Vec<String>| {
        [word.to_owned()].into_iter().chain(more).collect::<Vec<String>>()
    };
    let counted = |what, name: &str, word: &str| {
        order(what, name, words(word, vec![limit(name).to_string()]))
    };
    let mut orders = vec![
        order(What::Cpu, "cpu_percent", words("cpu", vec![BUSY_MS.to_string()])),
        counted(What::Memory, "memory_mb", "memory"),
        counted(What::Disk, "disk_mb", "disk"),
        counted(What::Inodes, "disk_mb", "inodes"),
        counted(What::Processes, "max_processes", "processes"),
        counted(What::Files, "max_files", "files"),
        counted(What::Time, "timeout_seconds", "time"),
        counted(What::Output, "output", "output"),
        counted(What::Io, "io", "io"),
        order(What::Host, "", words("host", host.files.clone())),
        order(What::Network, "", words("network", addresses(&isolation, host))),
        order(What::Attacks, "", words("attacks", attacks(&isolation, host))),
        order(What::Link, "", words("link", vec![host.outside.display().to_string()])),
        order(What::LinkFollowed, "", words("nothing", Vec::new())),
    ];
    for order in &mut orders {
        match order.what {
            What::Time => order.spec["limits"]["timeout_seconds"] = json!(order.time_seconds()),
            What::LinkFollowed => {
                order.spec["files"] = json!({LINKED: "out"});
                order.may_not_start = true;
            }
            // So that only the limit in question is met.
            What::Inodes => order.spec["limits"]["cpu_percent"] = json!(0),
            What::Memory
            | What::Cpu
            | What::Disk
            | What::Processes
            | What::Files
            | What::Output
            | What::Io
            | What::Host
            | What::Network
            | What::Attacks
            | What::Link => (),
        }
    }
    orders
}

fn command(words: impl IntoIterator<Item = String>) -> Value {
    let words = PROBE.iter().map(|word| (*word).to_owned()).chain(words);
    words.collect::<Vec<String>>().into()
}

/// The daemon, and the address at which clouds tell secrets. A plain process of a daemon that is not root has
/// the host's network, so that there a try would be more than a try.
fn addresses(isolation: &str, host: &Host) -> Vec<String> {
    let metadata =
        (isolation != "process" || sodium_sys::is_root()).then(|| "169.254.169.254:80".to_owned());
    host.daemon.map(|address| address.to_string()).into_iter().chain(metadata).collect()
}

/// The socket that is listened at meanwhile; and whether there is a filter to be asked, which gVisor's guests have no need of.
fn attacks(isolation: &str, host: &Host) -> Vec<String> {
    let filter = (isolation != "gvisor").then(|| attack::FILTER.to_owned());
    [host.abstract_socket.clone()].into_iter().chain(filter).collect()
}
