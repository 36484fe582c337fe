//! runsc: its command line and the OCI bundle of a sandbox, as values.
//!
//! The bundle is built from typed fields alone. Nothing a tenant writes becomes an annotation, a
//! mount, a flag or a hook; what is theirs is the command, the environment and the workspace. The
//! guest's root and its user are two ids of the host that no other sandbox has, so that whatever
//! escapes from gVisor is still nobody in particular.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::rootfs::{ETC_NETWORK, HOME, HOME_NAME, HOMES, INSIDE_ID, Shown, TMP, TMP_NAME, Tmp};
use crate::{DriverError, Order};
use sodium_model::{IdRange, Iid, Limits, Network, Platform};
use sodium_shim::launch::RUNSC_STAGE;
use sodium_sys::{SysError, process};

/// Names in [`Shown::made`]: what is mounted where homes are, and a mount point that nobody looks at.
const HOMES_MADE: &str = "homes";
const PROC_MADE: &str = "proc";
/// In a guest's /tmp.
const OCCUPIED: &str = ".sodium";
/// What a guest's root needs to become somebody, and gives up with that.
const BECOMING: [&str; 5] =
    ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"];

/// Names in the run directory of an instance.
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const MEMORY_INFO: &str = "meminfo";
pub(crate) const STATE: &str = "runsc";
pub(crate) const PID: &str = "pid";
pub(crate) const CONSOLE: &str = "console";
pub(crate) const USER_LOG: &str = "user-log";

/// The program and what its sandboxes are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runsc {
    pub program: PathBuf,
    /// As it says itself: `release-20240729.0`, or Debian's `0.0~20240729.0`.
    pub version: String,
    pub shown: Shown,
    /// Where its processes, which are nobody on the host, find what is in [`Shown::made`]: there, or at
    /// [`RUNSC_STAGE`].
    pub found: PathBuf,
    /// The root of every sandbox, read-only, as they find it.
    pub root: PathBuf,
}

/// What differs from one sandbox to the next.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    pub hostname: &'a str,
    pub command: &'a [String],
    pub env: &'a BTreeMap<String, String>,
    pub host_uid: u32,
    /// Who its root is there.
    pub host_root: u32,
    pub tty: bool,
    pub network: Network,
    pub limits: &'a Limits,
    /// Started ahead: nobody's yet, as the guest's root, who becomes somebody with what that takes.
    pub waits: bool,
    /// Whether there is a directory to be its /tmp; else that is in memory.
    pub has_tmp: bool,
}

/// Why gVisor could not work with this run directory: it finds its sandboxes by a pattern below it. The usual one
/// suits it wherever else things are.
fn unfit(run: &Path) -> Option<String> {
    let is_pattern = run.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[\\".contains(byte));
    is_pattern.then(|| {
        format!(
            "runsc takes * ? [ and \\ in {} for a pattern: leave \"run_path\" out of config.json, or name another",
            run.display()
        )
    })
}

/// Where whoever is nobody finds what is in a directory of ours. By no link, since there is no telling what that leads
/// through.
fn found_at(made: &Path) -> Result<PathBuf, SysError> {
    let real = fs::canonicalize(made).map_err(|source| SysError::io("resolve", made, source))?;
    let is_passable = real.ancestors().skip(1).all(|above| {
        fs::metadata(above).is_ok_and(|about| about.permissions().mode() & 0o001 != 0)
    });
    Ok(if is_passable { real } else { RUNSC_STAGE.into() })
}

impl Runsc {
    /// Finds the program, `configured` or usual, and writes what its sandboxes are shown.
    pub fn detect(configured: Option<&Path>, run: &Path, shim: &Path) -> Result<Self, DriverError> {
        let hint = "install it with: apt-get install -t bookworm-backports runsc";
        let usual = ["/usr/bin/runsc", "/usr/local/bin/runsc"].map(PathBuf::from);
        let candidates = configured.map_or_else(|| usual.to_vec(), |path| vec![path.to_owned()]);
        let program = candidates.into_iter().find(|path| path.is_file());
        let program = program.ok_or(DriverError::Missing { program: "runsc", hint })?;
        if !sodium_sys::is_root() {
            return Err(DriverError::Refused("gvisor needs a daemon that runs as root".to_owned()));
        }
        if let Some(why) = unfit(run) {
            return Err(DriverError::Refused(why));
        }
        let version = version(&program)?;
        let failed = |source| DriverError::Host { stage: "write what sandboxes are shown", source };
        let shown = Shown::make(run).map_err(failed)?;
        let root = shown.root(shim, Tmp::Link).map_err(failed)?;
        let homes = shown.made.join(HOMES_MADE);
        let tmp = homes.join(TMP_NAME);
        for dir in [&homes.join(HOME_NAME), &tmp, &shown.made.join(PROC_MADE)] {
            fs::create_dir_all(dir).map_err(|source| failed(SysError::io("mkdir", dir, source)))?;
        }
        occupy(&tmp).map_err(failed)?;
        let found = found_at(&shown.made).map_err(failed)?;
        let root = found.join(root.strip_prefix(&shown.made).unwrap_or(&root));
        Ok(Self { program, version, shown, found, root })
    }

    /// What is to be mounted at [`RUNSC_STAGE`] for its processes, if they could not walk to it.
    pub(crate) fn staged(&self) -> Option<&Path> {
        (self.found == Path::new(RUNSC_STAGE)).then_some(self.shown.made.as_path())
    }

    /// Where each sandbox's workspace is mounted, in a mount namespace in which there is no other.
    pub(crate) fn workspace(&self) -> PathBuf {
        self.homes().join(HOME_NAME)
    }

    /// And what is its /tmp, to which a link leads.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.homes().join(TMP_NAME)
    }

    /// What is mounted where homes are: a directory with nothing in it but these.
    fn homes(&self) -> PathBuf {
        self.found.join(HOMES_MADE)
    }

    /// A mount point as well, and seen by nobody.
    pub(crate) fn whole_proc(&self) -> PathBuf {
        self.found.join(PROC_MADE)
    }

    /// Flags that come before the command, the program's name included.
    pub(crate) fn flags(
        &self,
        state: &Path,
        platform: Platform,
        network: Network,
        is_shown_cgroups: bool,
    ) -> Vec<String> {
        let network = if network == Network::Host { "host" } else { "none" };
        let mut flags = vec![
            "runsc".to_owned(),
            format!("--root={}", state.display()),
            format!("--platform={}", platform.as_str()),
            format!("--network={network}"),
        ];
        // The real ones are ours, and everything is born in them.
        if !is_shown_cgroups {
            flags.push("--ignore-cgroups".to_owned());
        }
        flags
    }

    /// The arguments that start an instance, or have it go on from a checkpoint, and return. Pure.
    pub(crate) fn args(
        flags: Vec<String>,
        order: &Order<'_>,
        run_dir: &Path,
        image: Option<&Path>,
    ) -> Vec<String> {
        let mut args = flags;
        match image {
            None => args.push("run".to_owned()),
            Some(image) => {
                args.push("restore".to_owned());
                args.push(format!("--image-path={}", image.display()));
            }
        }
        args.push("--detach".to_owned());
        args.push(format!("--bundle={}", run_dir.display()));
        args.push(format!("--pid-file={}", run_dir.join(PID).display()));
        args.push(format!("--user-log={}", run_dir.join(USER_LOG).display()));
        if order.spec.tty {
            args.push(format!("--console-socket={}", run_dir.join(CONSOLE).display()));
        }
        args.push(order.iid.to_string());
        args
    }

    /// config.json of the bundle. Pure.
    pub fn bundle(&self, guest: &Guest<'_>) -> Value {
        let ids = json!([
            {"containerID": 0, "hostID": guest.host_root, "size": 1},
            {"containerID": INSIDE_ID, "hostID": guest.host_uid, "size": 1},
        ]);
        let held = if guest.waits { json!(BECOMING) } else { json!([]) };
        let (user, cwd) = if guest.waits { (0, "/") } else { (INSIDE_ID, HOME) };
        let limits = if guest.waits { json!([]) } else { json!(limits(guest.limits)) };
        let mut namespaces = vec!["pid", "ipc", "uts", "mount", "user"];
        if guest.network != Network::Host {
            namespaces.push("network");
        }
        let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({"type": kind})).collect();
        json!({
            "ociVersion": "1.0.2",
            "hostname": guest.hostname,
            "root": {"path": self.root, "readonly": true},
            "process": {
                "terminal": guest.tty,
                "user": {"uid": user, "gid": user},
                "args": guest.command,
                "env": assignments(guest.env),
                "cwd": cwd,
                "noNewPrivileges": !guest.waits,
                "capabilities": {"bounding": held, "effective": held, "inheritable": [],
                                 "permitted": held, "ambient": []},
                "rlimits": limits,
            },
            "mounts": self.mounts(guest.network, guest.has_tmp),
            "linux": {"namespaces": namespaces, "uidMappings": ids, "gidMappings": ids, "cgroupsPath": super::counted::CGROUP},
        })
    }

    fn mounts(&self, network: Network, has_tmp: bool) -> Vec<Value> {
        let own = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
        let bind = |from: &Path, to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": from, "options": options});
        let read_only = ["rbind", "ro", "nosuid", "nodev"];
        let mut mounts = vec![
            own("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            own("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            bind(Path::new("/usr"), "/usr", &read_only),
        ];
        for (name, target) in &self.shown.top_level {
            if target.is_none() {
                let path = format!("/{name}");
                mounts.push(bind(Path::new(&path), &path, &read_only));
            }
        }
        if network == Network::Host {
            let there = ETC_NETWORK.iter().filter(|path| Path::new(path).exists());
            mounts.extend(there.map(|path| bind(Path::new(path), path, &read_only)));
        }
        // With what is mounted in it; for a guest that was started ahead, that comes later.
        mounts.push(bind(&self.homes(), HOMES, &["rbind", "rw", "nosuid", "nodev"]));
        if !has_tmp {
            mounts.push(own(TMP, "tmpfs", &["nosuid", "nodev", "mode=1777"]));
        }
        mounts
    }
}

/// Puts something into a directory that is to be a guest's /tmp: over one with nothing in it, runsc mounts a file
/// system in memory, which no limit on the disk would count. A disk that is full has room for nothing, and what is
/// then in memory is within that limit.
pub(crate) fn occupy(tmp: &Path) -> Result<(), SysError> {
    let fine = [ErrorKind::AlreadyExists, ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    match fs::create_dir(tmp.join(OCCUPIED)) {
        Err(source) if !fine.contains(&source.kind()) => Err(SysError::io("mkdir", tmp, source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Who the files of a sandbox belong to on disk, and who that is for a guest that was started under
/// another uid: its user and its root.
pub(crate) fn shifted_ids(ids: &IdRange, disk: u32, guest: u32) -> Vec<(u32, u32)> {
    vec![(disk, guest), (ids.root_of(disk), ids.root_of(guest))]
}

/// A program for `runsc exec`, who it is and what it may: as the bundle has it.
pub(crate) fn exec_process(
    command: &[String],
    env: &BTreeMap<String, String>,
    work_dir: &Path,
    tty: bool,
) -> Value {
    json!({
        "terminal": tty,
        "user": {"uid": INSIDE_ID, "gid": INSIDE_ID},
        "args": command,
        "env": assignments(env),
        "cwd": work_dir,
        "noNewPrivileges": true,
        "capabilities": {},
    })
}

/// Starts it and stays until it ends.
pub(crate) fn exec_args(state: &Path, process: &Path, pid_file: &Path, iid: &Iid) -> Vec<String> {
    vec![
        "runsc".to_owned(),
        format!("--root={}", state.display()),
        "exec".to_owned(),
        format!("--process={}", process.display()),
        format!("--internal-pid-file={}", pid_file.display()),
        iid.to_string(),
    ]
}

/// Kills the process that has this number inside.
pub(crate) fn kill_args(state: &Path, pid: &str, iid: &Iid) -> Vec<String> {
    let root = format!("--root={}", state.display());
    ["runsc", &root, "kill", "--pid", pid, iid.as_str(), "KILL"].map(str::to_owned).to_vec()
}

fn assignments(env: &BTreeMap<String, String>) -> Vec<String> {
    env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Whether a process is gVisor's kernel or its file server. Both live as long as the sandbox; the guest's
/// own processes, which have no name on the host, come and go.
pub(crate) fn is_own_process(pid: u32) -> bool {
    let arguments = process::arguments(pid);
    matches!(arguments.first().map(String::as_str), Some("runsc-sandbox" | "runsc-gofer"))
}

/// Whether a process is gVisor's kernel.
pub(crate) fn is_kernel(pid: u32) -> bool {
    process::arguments(pid).first().is_some_and(|name| name == "runsc-sandbox")
}

/// What the guest is told of the memory it has. gVisor asks the host's /proc/meminfo for it.
pub(crate) fn memory_info(limits: &Limits) -> Option<String> {
    (limits.memory_mb > 0).then(|| {
        let kib = limits.memory_mb << 10;
        format!("MemTotal:       {kib} kB\nMemFree:        {kib} kB\nMemAvailable:   {kib} kB\n")
    })
}

fn limits(limits: &Limits) -> Vec<Value> {
    [("RLIMIT_NOFILE", limits.max_files), ("RLIMIT_NPROC", limits.max_processes)]
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(kind, value)| json!({"type": kind, "hard": value, "soft": value}))
        .chain([json!({"type": "RLIMIT_CORE", "hard": 0, "soft": 0})])
        .collect()
}

fn version(program: &Path) -> Result<String, DriverError> {
    let failed = |source| DriverError::Spawn { program: program.to_owned(), source };
    let said = Command::new(program).arg("--version").env_clear().output().map_err(failed)?;
    let text = String::from_utf8_lossy(&said.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("runsc version "));
    version.map(str::to_owned).ok_or_else(|| {
        DriverError::Refused(format!("{} --version does not say which", program.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_nobody_may_walk_to_is_found_on_a_stage_by_whatever_name_it_goes() {
        assert_eq!(found_at(Path::new("/usr/bin")).unwrap(), Path::new("/usr/bin"));
        let top = tempfile::tempdir().unwrap();
        let [closed, link] = ["closed", "link"].map(|name| top.path().join(name));
        fs::create_dir_all(closed.join("run/shown")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(closed.join("run"), &link).unwrap();
        for run in [closed.join("run"), link] {
            assert_eq!(found_at(&run.join("shown")).unwrap(), Path::new(RUNSC_STAGE));
        }
    }
}
