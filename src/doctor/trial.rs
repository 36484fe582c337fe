//! One short sandbox of each isolation, through the real driver, in a run and a state directory of its own
//! that are gone afterwards. What the kernel makes of its limits is read back on the way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::config::Config;
use crate::doctor::{Finding, Severity};
use sodium_model::{
    ExitRecord, Iid, Isolation, LimitStatus, Observed, Platform, SandboxName, Spec,
};
use sodium_runtime::storage::volume::{self, Ask, Kind, MIB, Volumes};
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::Supervisor;
use sodium_runtime::supervise::host::{Host, Paths};
use sodium_runtime::{Driver, DriverError, Order};
use sodium_sys as sys;
use sodium_sys::error::chain;

/// How long a program may take that does nothing.
const TRY_WITHIN: Duration = Duration::from_secs(30);
const CONSOLE_BYTES: u64 = 1 << 20;
/// Of the trial's volume.
const VOLUME_BYTES: u64 = 4 * MIB;

/// Why cgroups matter, and how to get them.
const CGROUP_FIX: &str = "under systemd: systemctl edit sodiumd, add [Service] and Delegate=yes, then \
                          systemctl restart sodiumd; as an ordinary user: loginctl enable-linger and \
                          systemd-run --user --scope -p Delegate=yes sodiumd run";

/// The directories of a trial; gone when it is over.
struct Ground {
    dir: PathBuf,
    host: Arc<Host>,
}

impl Ground {
    fn new(config: &Config) -> Result<Self, DriverError> {
        let dir =
            config.run_path.with_file_name(format!("sodiumd-doctor-{}", Uuid::new_v4().simple()));
        let failed = |stage| move |source| DriverError::Host { stage, source };
        // New, and under a name that nobody has foreseen.
        let above = dir.parent().map_or(Ok(()), fs::create_dir_all);
        above.and_then(|()| fs::create_dir(&dir)).map_err(|source| {
            failed("make a directory beside run_path")(sys::SysError::io("mkdir", &dir, source))
        })?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        let _ = fs::set_permissions(&dir, mode);
        // As a daemon does it.
        if sys::is_root() {
            sys::mount::allow_exec(&dir).map_err(failed("run programs beside run_path"))?;
        }
        let own = std::env::current_exe().unwrap_or_default();
        let paths = Paths {
            run: dir.join("run"),
            state: dir.join("state"),
            shim: own.with_file_name("sodium-shim"),
        };
        let opened = Workspaces::open(&dir.join("sandboxes"), sys::is_root(), &config.disk)
            .and_then(|workspaces| {
                let _ = fs::create_dir(&paths.run);
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
                let _ = fs::set_permissions(&paths.run, mode);
                Host::open(paths, workspaces, CONSOLE_BYTES, 1).map(|host| {
                    host.with_ids(config.ids).with_timer_slack(config.gvisor_timer_slack)
                })
            })
            .map_err(failed("make a directory beside run_path"));
        match opened {
            Ok(host) => Ok(Self { dir, host: Arc::new(host) }),
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.host.cgroups.remove();
        volume::unmount_all(&self.dir.join("sandboxes"));
        if sys::mount::is_at(&self.dir) {
            let _ = sys::mount::unmount(&self.dir, true);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Every isolation, and every limit.
pub(super) fn isolations(config: &Config) -> Vec<Finding> {
    let ground = match Ground::new(config) {
        Ok(ground) => ground,
        Err(error) => {
            let means = (
                "nothing can be started",
                "make the parent of run_path writable, or name another run_path in config.json",
            );
            return vec![Finding::bad("run_path", Severity::Broken, chain(&error), means)];
        }
    };
    let host = &ground.host;
    let mut findings = vec![cgroups(host)];
    let process = Supervisor::process(Arc::clone(host));
    let tried = run(&process, Isolation::Process);
    findings.extend(limits(tried.as_ref().map_or(&[], |trial| &trial.limits)));
    findings.push(disk(config));
    let needed = |isolation| {
        let wanted = config.isolation == isolation || config.allowed.floor == isolation;
        if wanted { Severity::Broken } else { Severity::Degraded }
    };
    findings.push(report("process", tried, (Severity::Broken, "plain processes do not run", "")));
    let bubblewrap = Supervisor::bubblewrap(Arc::clone(host));
    findings.push(match bubblewrap.missing() {
        None => {
            let fix = user_namespaces_fix();
            let bad =
                (needed(Isolation::Bubblewrap), "bubblewrap sandboxes do not run", fix.as_str());
            report("bubblewrap", run(&bubblewrap, Isolation::Bubblewrap), bad)
        }
        Some(why) => {
            let means = ("bubblewrap sandboxes do not run", "apt-get install bubblewrap");
            Finding::bad("bubblewrap", needed(Isolation::Bubblewrap), why.to_owned(), means)
        }
    });
    findings.extend(gvisor(config, host, needed(Isolation::Gvisor)));
    findings
}

/// Each platform of gVisor that is not known to be slow or to hang.
fn gvisor(config: &Config, host: &Arc<Host>, severity: Severity) -> Vec<Finding> {
    let platforms = match config.gvisor_platform {
        Some(platform) => vec![platform],
        None => vec![Platform::Systrap, Platform::Ptrace],
    };
    let mut findings = Vec::new();
    for platform in platforms {
        let name = match platform {
            Platform::Systrap => "gvisor, systrap",
            Platform::Ptrace => "gvisor, ptrace",
            Platform::Kvm => "gvisor, kvm",
        };
        let driver =
            Supervisor::gvisor(Arc::clone(host), config.gvisor_program.as_deref(), Some(platform));
        if let Some(why) = driver.missing() {
            let fix = "apt-get install -t bookworm-backports runsc, or name it as gvisor.program in config.json";
            let means = ("gVisor sandboxes do not run", fix);
            findings.push(Finding::bad("gvisor", severity, why.to_owned(), means));
            break;
        }
        // That nothing ran in time is told by the start that follows.
        let _ = driver.find_out(TRY_WITHIN);
        let other = "another platform is used, if it works";
        let bad = (
            Severity::Degraded,
            other,
            "a runsc of 2023 or later has systrap; Debian's of bookworm-backports is one",
        );
        findings.push(report(name, run(&driver, Isolation::Gvisor), bad));
    }
    if findings.iter().all(|finding| finding.severity != Severity::Fine) {
        for finding in &mut findings {
            finding.severity = finding.severity.max(severity);
        }
    }
    findings
}

/// What a trial came to.
struct Trial {
    limits: Vec<LimitStatus>,
    runtime: String,
    took: Duration,
}

fn report(
    name: &'static str,
    tried: Result<Trial, String>,
    (severity, means, fix): (Severity, &str, &str),
) -> Finding {
    match tried {
        Ok(trial) => {
            let found = format!(
                "{}; a program ran and ended in {} ms",
                trial.runtime,
                trial.took.as_millis()
            );
            Finding::fine(name, found)
        }
        Err(why) => Finding::bad(name, severity, why, (means, fix)),
    }
}

/// A program that does nothing, from its start to when nothing of it is left.
fn run(driver: &Supervisor, isolation: Isolation) -> Result<Trial, String> {
    let uid = Uuid::now_v7();
    let iid = Iid::new(uid, 1);
    let began = Instant::now();
    let ended = start(driver, &iid, uid, isolation);
    let cleaned = clean_up(driver, &iid);
    let (exit, limits) = ended?;
    cleaned?;
    if !exit.is_success() {
        return Err(exit.summary());
    }
    let runtime = driver.runtime().unwrap_or_default();
    Ok(Trial { limits, runtime, took: began.elapsed() })
}

fn start(
    driver: &Supervisor,
    iid: &Iid,
    uid: Uuid,
    isolation: Isolation,
) -> Result<(ExitRecord, Vec<LimitStatus>), String> {
    let name = SandboxName::try_from("doctor").map_err(|error| error.to_string())?;
    let spec = spec(isolation)?;
    let started = driver.start(&Order {
        iid,
        name: &name,
        uid,
        generation: 1,
        epoch: 1,
        spec: &spec,
        host_uid: driver.trial_id(),
        image_files: &BTreeMap::new(),
        take_back: None,
        restore: None,
    });
    let started = started.map_err(|error| chain(&error))?;
    let deadline = Instant::now() + TRY_WITHIN;
    while Instant::now() < deadline {
        match driver.observe(iid).map_err(|error| chain(&error))? {
            Observed::Exited { exit } | Observed::Gone { exit: Some(exit), .. } => {
                return Ok((exit, started.limits));
            }
            Observed::Gone { exit: None, .. } | Observed::Orphan => {
                return Err("it ended unseen: its shim is gone".to_owned());
            }
            Observed::Launching
            | Observed::Running { .. }
            | Observed::Stopping { .. }
            | Observed::Unknown => thread::sleep(Duration::from_millis(5)),
        }
    }
    Err(format!("no exit within {} s", TRY_WITHIN.as_secs()))
}

fn clean_up(driver: &Supervisor, iid: &Iid) -> Result<(), String> {
    let deadline = Instant::now() + TRY_WITHIN;
    loop {
        let Err(error) = driver.clean_up(iid) else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(chain(&error));
        }
        // Whatever is still there was not to be.
        let _ = driver.kill_orphan(iid);
        thread::sleep(Duration::from_millis(10));
    }
}

fn spec(isolation: Isolation) -> Result<Spec, String> {
    let limits = json!({"memory_mb": 128, "cpu_percent": 100, "disk_mb": 0, "timeout_seconds": 20,
        "max_processes": 32, "max_files": 256});
    let written = json!({
        "isolation": isolation, "command": ["true"], "state": "running", "env": {},
        "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
        "stop": {"signal": "SIGKILL", "grace": "0s"}, "tty": false, "network": "none",
        "limits": limits, "strict": false, "files": {},
    });
    serde_json::from_value(written).map_err(|error| error.to_string())
}

fn cgroups(host: &Host) -> Finding {
    if host.cgroups.is_empty() {
        let means =
            ("no limit on memory, cpu or processes is kept, and nothing can be paused", CGROUP_FIX);
        return Finding::bad("cgroups", Severity::Degraded, "none that this user may use", means);
    }
    if !host.cgroups.can_freeze() {
        let means = (
            "nothing can be paused, and processes are killed one by one",
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        );
        return Finding::bad("cgroups", Severity::Degraded, "version 1 alone", means);
    }
    Finding::fine("cgroups", host.cgroups.kind())
}

/// The limits of a trial, each as the kernel has it.
fn limits(statuses: &[LimitStatus]) -> Vec<Finding> {
    let known = ["memory_mb", "cpu_percent", "max_processes", "max_files"];
    known
        .into_iter()
        .filter_map(|name| {
            let status = statuses.iter().find(|status| status.limit == name)?;
            let read_back =
                status.read_back.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
            let found =
                format!("asked for {}, {} says {read_back}", status.requested, status.mechanism);
            if status.is_enforced() {
                return Some(Finding::fine(name, found));
            }
            let means = ("the limit is not kept, and `strict: true` refuses to run", CGROUP_FIX);
            Some(Finding::bad(name, Severity::Degraded, status.reason.clone(), means))
        })
        .collect()
}

/// Writes twice as much as may fit. Returns what did, and the refusal.
fn fill(path: &Path) -> (u64, Option<io::Error>) {
    static CHUNK: [u8; 64 << 10] = [0; 64 << 10];
    let mut written = 0;
    let refused = fs::File::create(path).and_then(|mut file| {
        while written < 2 * VOLUME_BYTES {
            file.write_all(&CHUNK).and_then(|()| file.sync_data())?;
            written += CHUNK.len() as u64;
        }
        Ok(())
    });
    (written, refused.err())
}

/// Makes a small volume where sandboxes are to lie, and fills it.
fn disk(config: &Config) -> Finding {
    let there = config.sandboxes_path.ancestors().find(|path| path.is_dir());
    let there = there.unwrap_or_else(|| Path::new("/"));
    let dir = there.join(format!(".sodiumd-doctor-{}", Uuid::new_v4().simple()));
    let tried = match fs::create_dir(&dir) {
        Ok(()) => fill_volume(&dir, config),
        Err(error) => Err(format!("make {}: {error}", dir.display())),
    };
    volume::unmount_all(&dir);
    let _ = fs::remove_dir_all(&dir);
    let means = (
        "a sandbox is counted once a minute and may fill the disk meanwhile, and `strict: true` refuses to run",
        "apt-get install e2fsprogs; as root, with /dev/loop-control; or put sandboxes_path on XFS or ext4 \
         mounted with prjquota, or on btrfs",
    );
    match tried {
        Ok(found) => Finding::fine("disk_mb", found),
        Err(why) => Finding::bad("disk_mb", Severity::Degraded, why, means),
    }
}

fn fill_volume(dir: &Path, config: &Config) -> Result<String, String> {
    let said = |error: sys::SysError| chain(&error);
    let rules = &config.disk;
    let volumes = Volumes::open(dir, sys::is_root(), rules.mechanism, 0).map_err(said)?;
    let kind = volumes.kind()?;
    let (uid, ask) = (Uuid::nil(), Ask { bytes: VOLUME_BYTES, owner: config.ids.trial() });
    let trial = volumes.ensure(uid, &ask).map_err(said).and_then(|volume| {
        let (read_back, what) = (volume.read_back(ask.owner), kind.mechanism());
        if read_back != Some(VOLUME_BYTES) {
            return Err(format!("{what}: the limit reads back as {read_back:?}"));
        }
        // ext4 lets root pass a quota, and nobody else.
        if kind == Kind::Quota {
            return Ok(format!("{what}: {VOLUME_BYTES} bytes, as the kernel has it"));
        }
        match fill(&volume.dir.join("file")) {
            (written, Some(error)) => Ok(format!("{what}: full after {written} bytes ({error})")),
            (written, None) => Err(format!("{what}: {written} bytes fit into {VOLUME_BYTES}")),
        }
    });
    volumes.remove(uid).map_err(said).and(trial)
}

/// Why an ordinary user may have no user namespaces, and what allows them.
fn user_namespaces_fix() -> String {
    let says = |path: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(path)).is_ok_and(|text| text.trim() == value)
    };
    if says("kernel/apparmor_restrict_unprivileged_userns", "1") {
        // As Ubuntu 23.10 and later have it: a program needs a profile that says so.
        return "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) {\\n  \
                userns,\\n}\\n' > /etc/apparmor.d/bwrap && apparmor_parser -r /etc/apparmor.d/bwrap"
            .to_owned();
    }
    if says("kernel/unprivileged_userns_clone", "0") {
        return "sysctl -w kernel.unprivileged_userns_clone=1".to_owned();
    }
    if says("user/max_user_namespaces", "0") {
        return "sysctl -w user.max_user_namespaces=15000".to_owned();
    }
    "see what bwrap said above; `bwrap --unshare-all --ro-bind / / true` shows it again".to_owned()
}
