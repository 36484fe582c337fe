//! The kernel, its limits, and the directories and secrets that the configuration names.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::doctor::{Finding, Severity};
use sodium_model::Isolation;
use sodium_runtime::process;
use sodium_sys::trust::TrustError;
use sodium_sys::{self as sys, landlock, mount, own, spawn};

/// Directories of specs watched, with room for everybody else on the machine.
const INOTIFY_INSTANCES_MIN: u64 = 16;
/// Each connection and each shim is one; fewer would be felt.
const OPEN_FILES_MIN: u64 = 4_096;
/// Room that the database and consoles need to go on.
const FREE_MB_MIN: u64 = 512;
/// Shorter ones can be guessed by whoever can ask.
const TOKEN_CHARS_MIN: usize = 16;

pub(super) fn kernel() -> Vec<Finding> {
    vec![privileges(), landlock_found(), open_files(), inotify(), pressure()]
}

fn privileges() -> Finding {
    if sys::is_root() {
        return Finding::fine("privileges", "root: each sandbox has a host user of its own");
    }
    let means = (
        "all sandboxes share this user on the host; gVisor and limits need what root may hand over",
        "sudo sodiumd run --config /etc/sodium/config.json",
    );
    Finding::bad("privileges", Severity::Degraded, "an ordinary user", means)
}

fn landlock_found() -> Finding {
    match landlock::abi() {
        abi if abi > 0 => Finding::fine("landlock", format!("version {abi}")),
        _ => {
            let means = (
                "plain processes (isolation: process) may read whatever their host user may",
                "add lsm=landlock,... to the kernel's command line; it is in Linux since 5.13",
            );
            Finding::bad("landlock", Severity::Degraded, "the kernel has none", means)
        }
    }
}

fn open_files() -> Finding {
    let most = spawn::open_files_max();
    if most >= OPEN_FILES_MIN {
        return Finding::fine("open files", format!("up to {most}"));
    }
    let means = (
        "few connections and few sandboxes at once; max_files above it is not kept",
        "under systemd: LimitNOFILE=1048576; else: ulimit -Hn 1048576",
    );
    Finding::bad("open files", Severity::Degraded, format!("up to {most}"), means)
}

fn inotify() -> Finding {
    let most = number("/proc/sys/fs/inotify/max_user_instances").unwrap_or(0);
    if most >= INOTIFY_INSTANCES_MIN {
        return Finding::fine("inotify", format!("{most} instances"));
    }
    let means = (
        "changes of specs are seen every 15 s only",
        "sysctl -w fs.inotify.max_user_instances=128",
    );
    Finding::bad("inotify", Severity::Degraded, format!("{most} instances"), means)
}

fn pressure() -> Finding {
    if Path::new("/proc/pressure/memory").exists() {
        return Finding::fine("pressure", "the kernel tells it");
    }
    let means = (
        "PSI disabled: no metrics of cpu, memory or io pressure",
        "add psi=1 to the kernel's command line",
    );
    Finding::bad("pressure", Severity::Degraded, "not told", means)
}

/// The directories: whether they can be written, what may be run there, and how much room is left.
pub(super) fn paths(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = [
        ("state_path", &config.state_path, own::PRIVATE, false),
        ("run_path", &config.run_path, own::PASSABLE, false),
        ("sandboxes_path", &config.sandboxes_path, own::PRIVATE, true),
    ];
    for (name, path, mode, runs_programs) in all {
        if let Err(error) = own::judge(path, mode) {
            findings.push(not_ours(name, path, &error));
            continue;
        }
        let there = nearest(path);
        let Some(about) = mount::of(&there) else { continue };
        if about.read_only {
            let fix = format!("mount -o remount,rw {}", about.at.display());
            let found = format!("{} is mounted read-only", about.at.display());
            findings.push(Finding::bad(
                name,
                Severity::Broken,
                found,
                ("nothing can be kept there", &fix),
            ));
            continue;
        }
        if runs_programs && about.no_exec {
            let fix = format!("mount -o remount,exec {}", about.at.display());
            let found = format!("{} is mounted noexec", about.at.display());
            let means = ("programs that a sandbox writes for itself cannot be run", fix.as_str());
            findings.push(Finding::bad(name, Severity::Degraded, found, means));
            continue;
        }
        let room = sys::disk::space(&there).unwrap_or_default();
        let found = format!(
            "{} on {}, {} MiB and {} files free",
            path.display(),
            about.kind,
            room.free_bytes >> 20,
            room.free_inodes
        );
        // File systems without a table of inodes say that they have none.
        let few_files = room.total_inodes > 0 && room.free_inodes < 10_000;
        if room.free_bytes >> 20 < FREE_MB_MIN || few_files {
            let fix = format!("df -h {0}; df -i {0}", there.display());
            let means = ("soon nothing can be written there any more", fix.as_str());
            findings.push(Finding::bad(name, Severity::Degraded, found, means));
        } else {
            findings.push(Finding::fine(name, found));
        }
    }
    findings
}

/// One that a daemon of whoever asks does not take. Another user's may.
fn not_ours(name: &'static str, path: &Path, error: &TrustError) -> Finding {
    let owner = fs::metadata(path).map(|about| about.uid());
    if let Ok(owner) = owner
        && owner != sys::own_ids().0
    {
        let found = format!("{} belongs to uid {owner}", path.display());
        let means = "a daemon of this user does not start with it; one of that user may run";
        let fix = format!("run sodiumd and its doctor as uid {owner}, or name another \"{name}\"");
        return Finding::bad(name, Severity::Broken, found, (means, fix.as_str()));
    }
    let means = "sodiumd does not start with it";
    match error {
        TrustError::Distrusted(why) => {
            let found = format!("{} {}", why.path.display(), why.why);
            Finding::bad(name, Severity::Broken, found, (means, why.remedy.as_str()))
        }
        TrustError::Unreadable(error) => {
            let found = format!("{}: {error}", path.display());
            let fix = format!("name another directory as \"{name}\" in config.json");
            Finding::bad(name, Severity::Broken, found, (means, fix.as_str()))
        }
    }
}

/// The directory itself, or the nearest above it that exists.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.exists());
    there.unwrap_or_else(|| Path::new("/")).to_owned()
}

/// Whether others can read or guess what lets people in.
pub(super) fn secrets(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let local = config.host == "localhost"
        || config.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match &config.token {
        Some(token) if token.len() < TOKEN_CHARS_MIN && !local => {
            let fix =
                "set \"token\" to null in config.json: the daemon makes one at its next start";
            let found =
                format!("{} characters, and the API listens on {}", token.len(), config.host);
            let means = ("it can be guessed by whoever can reach the port", fix);
            findings.push(Finding::bad("token", Severity::Degraded, found, means));
        }
        // Or the configuration would not have been believed.
        Some(_) => {
            findings.push(Finding::fine("token", "in config.json, which nobody else can read"));
        }
        None => {
            let path = config.state_path.join("token");
            findings.push(readable("token", &path).unwrap_or_else(|| {
                Finding::fine("token", format!("in {}, for its owner alone", path.display()))
            }));
        }
    }
    findings.extend(readable("state", &config.state_path.join("sodiumd.db")));
    findings
}

/// Whether the API has its port, or could have it.
pub(super) fn port(config: &Config) -> Option<Finding> {
    // Any port that is free.
    if config.port == 0 {
        return None;
    }
    let at = format!("{}:{}", config.host, config.port);
    let Some(holder) = sys::port::holder(config.port) else {
        return Some(Finding::fine("port", format!("{at} is free")));
    };
    let is_ours = holder.uid == 0 || holder.uid == sys::own_ids().0;
    let program = holder.process.as_ref().map_or("", |(_, program)| program.as_str());
    // The service manager keeps it for a daemon that is away.
    if is_ours && matches!(program, "sodiumd" | "systemd") {
        return Some(Finding::fine("port", format!("{at} is served by {holder}")));
    }
    let means = (
        "the daemon serves its local socket alone until the port is free",
        "end that program (of a sandbox: sodiumd stop NAME), or change \"port\" in config.json",
    );
    Some(Finding::bad("port", Severity::Degraded, format!("{at} is taken by {holder}"), means))
}

/// Whether a daemon looks after this configuration. That none was started yet is no fault; one that is gone is.
pub(super) fn daemon(config: &Config) -> Finding {
    let socket = config.socket();
    match sys::socket::connect(&socket) {
        Ok(_) => Finding::fine("daemon", format!("answers at {}", socket.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::fine("daemon", "none was started yet")
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::fine("daemon", format!("{} is somebody else's", socket.display()))
        }
        Err(error) => {
            let found = format!("none answers at {}: {error}", socket.display());
            let means = (
                "what runs keeps running, and nobody restarts it, stops it in time or takes orders",
                "sodiumd run, or systemctl start sodiumd",
            );
            Finding::bad("daemon", Severity::Degraded, found, means)
        }
    }
}

/// What sandboxes can talk to, though they have no network: what they are shown of the host is read-only, and a socket
/// in it is none the less connected to by whoever may write to that.
pub(super) fn sockets(config: &Config) -> Finding {
    let trees: &[&str] = match config.allowed.floor {
        Isolation::Process => process::READ_ONLY,
        Isolation::Bubblewrap => &["/usr"],
        Isolation::Gvisor => &[],
    };
    let open = sys::socket::open_to_everybody(trees.iter().map(Path::new));
    let Some(one) = open.first() else {
        return Finding::fine("sockets", "none of the host's is open to sandboxes");
    };
    let one = format!("{one:?}");
    let found = match open.len() - 1 {
        0 => format!("everybody may connect to {one}"),
        more => format!("everybody may connect to {one} and {more} more"),
    };
    let means = "whoever listens there is reachable from sandboxes, with network: none as well";
    let fix = format!("chmod o-w {one}, or have that program listen below /run");
    Finding::bad("sockets", Severity::Degraded, found, (means, fix.as_str()))
}

/// A finding if somebody else may read the file.
fn readable(name: &'static str, path: &Path) -> Option<Finding> {
    let meta = fs::metadata(path).ok()?;
    let mode = meta.permissions().mode() & 0o777;
    let walled = path.parent().and_then(|dir| fs::metadata(dir).ok())?.mode() & 0o011 == 0;
    if mode & 0o044 == 0 || walled {
        return None;
    }
    let fix = format!("chmod 600 {}", path.display());
    let found = format!("{} has mode {mode:o}", path.display());
    let means = ("everybody on this machine can read it", fix.as_str());
    Some(Finding::bad(name, Severity::Degraded, found, means))
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
