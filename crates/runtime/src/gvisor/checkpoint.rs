//! Keeping the memory of a gVisor sandbox. It stands still while that is done, so that what is kept and
//! what is in its workspace belong together; only what is whole and on disk gets its name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::{Gvisor, runsc};
use crate::runtime::Checkpoint;
use crate::storage::fsops;
use crate::supervise::SEARCH_PATH;
use crate::supervise::host::Host;
use crate::{DriverError, Keep, Order};
use sodium_model::{Iid, Network};
use sodium_sys::error::chain;
use sodium_sys::{SysError, process};

/// runsc keeps 50 MiB in 0.3 s, and stops and lets go on at once. Something this slow hangs.
const KEPT_WITHIN: Duration = Duration::from_secs(120);
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Kept of what runsc says, which may be what gVisor has told it.
const SAID_BYTES_MAX: usize = 4096;
/// And waited for that, once it has ended.
const SAID_WITHIN: Duration = Duration::from_secs(1);
/// In the run directory while gVisor itself has the guest stand still.
const STILL: &str = "still";
/// In the directory of a checkpoint.
const IMAGE: &str = "image";
const WORKSPACE: &str = "workspace";
/// Versions before this one end a sandbox while its checkpoint is being taken.
const FIRST_RELEASE: u32 = 2023;

impl Checkpoint for Gvisor {
    /// The guest stands still while that is done. A hibernation ends it next.
    fn take(&self, host: &Host, iid: &Iid, order: &Keep<'_>) -> Result<u64, DriverError> {
        let refused = |why: String| Err(DriverError::Refused(why));
        let version = &self.runsc()?.version;
        if is_old(version) {
            return refused(format!(
                "runsc {version} ends a sandbox while it takes a checkpoint, so that a crash would \
                 lose it; install the one of bookworm-backports"
            ));
        }
        if order.spec.network == Network::Host {
            return refused("connections over the host's network cannot be kept".to_owned());
        }
        if order.spec.tty {
            return refused("a terminal cannot be kept".to_owned());
        }
        self.stand_still(host, iid)?;
        let kept = self.keep_still(host, iid, order);
        // Whatever became of it.
        let went_on = if order.and_go_on || kept.is_err() { self.go_on(host, iid) } else { Ok(()) };
        kept.and_then(|bytes| went_on.map(|()| bytes))
    }

    fn restore(&self, host: &Host, order: &Order<'_>) -> Result<Option<PathBuf>, DriverError> {
        let Some(from) = &order.restore else { return Ok(None) };
        let dir = dir_of(&host.paths.state, order.uid).join(from.dir);
        if !dir.is_dir() {
            return Err(DriverError::Refused(format!("{} is gone", dir.display())));
        }
        if from.has_workspace {
            let failed = |source| DriverError::Host { stage: "restore workspace", source };
            let label = format!("{}.before-restore-{}", order.name, from.request);
            let spaces = &host.workspaces;
            let replaced = spaces.replace(&host.wanted_place(order), &dir.join(WORKSPACE), &label);
            replaced.map_err(failed)?;
        }
        Ok(Some(dir.join(IMAGE)))
    }

    fn go_on(&self, host: &Host, iid: &Iid) -> Result<(), DriverError> {
        if !self.stands_still(host, iid) {
            return Ok(());
        }
        if self.ask(host, iid, &["resume"]).is_err() {
            // Noted, and then it was not stopped: what can be stopped now can go on.
            self.ask(host, iid, &["pause"])?;
            self.ask(host, iid, &["resume"])?;
        }
        let mark = mark(host, iid);
        fs::remove_file(&mark).map_err(|source| DriverError::Host {
            stage: "go on",
            source: SysError::io("remove", &mark, source),
        })
    }

    fn stands_still(&self, host: &Host, iid: &Iid) -> bool {
        mark(host, iid).exists()
    }
}

impl Gvisor {
    /// Of a sandbox that stands still.
    fn keep_still(&self, host: &Host, iid: &Iid, order: &Keep<'_>) -> Result<u64, DriverError> {
        let group = host.group(iid);
        if let Some(path) = group.pids().into_iter().flat_map(deleted_files).next() {
            return Err(DriverError::Refused(format!(
                "a program holds {path} open, which was deleted: it could not be opened again"
            )));
        }
        let failed = |source| DriverError::Host { stage: "keep memory", source };
        let dir = dir_of(&host.paths.state, order.uid).join(order.dir);
        let unfinished = dir.with_extension("new");
        for old in [&unfinished, &dir] {
            fsops::remove(old).map_err(failed)?;
        }
        let image = unfinished.join(IMAGE);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&image);
        made.map_err(|source| failed(SysError::io("mkdir", &image, source)))?;
        let path = format!("--image-path={}", image.display());
        self.ask(host, iid, &["checkpoint", &path, "--leave-running"])?;
        if order.with_workspace {
            let spaces = &host.workspaces;
            let to = unfinished.join(WORKSPACE);
            // What its own user put there is for its own user to mend.
            let refused = |error| DriverError::Refused(chain(&error));
            spaces.copy(order.uid, order.host_uid, &to).map_err(refused)?;
        }
        let bytes = fsops::length_bytes(&unfinished);
        fsops::sync(&unfinished).map_err(failed)?;
        fs::rename(&unfinished, &dir)
            .and_then(|()| File::open(dir.parent().unwrap_or(&dir))?.sync_all())
            .map_err(|source| failed(SysError::io("store", &dir, source)))?;
        Ok(bytes)
    }

    /// Has gVisor stop the guest where it is: the host's freezer would stop gVisor as well, which is to
    /// do the keeping. That it stands still is noted first, so that nobody forgets to let it go on.
    fn stand_still(&self, host: &Host, iid: &Iid) -> Result<(), DriverError> {
        let group = host.group(iid);
        let failed = |source| DriverError::Host { stage: "keep memory", source };
        group.freeze(false).map_err(failed)?;
        // The mark alone says nothing of what it does now.
        self.go_on(host, iid)?;
        let mark = mark(host, iid);
        File::create(&mark).map_err(|source| failed(SysError::io("create", &mark, source)))?;
        self.ask(host, iid, &["pause"]).inspect_err(|error| {
            // Where no runsc ran, nobody stopped anything.
            if matches!(error, DriverError::Spawn { .. }) {
                let _ = fs::remove_file(&mark);
            }
        })
    }

    /// Runs runsc about an instance, with its id as the last argument.
    fn ask(&self, host: &Host, iid: &Iid, words: &[&str]) -> Result<(), DriverError> {
        let program = &self.runsc()?.program;
        let failed = |source| DriverError::Spawn { program: program.clone(), source };
        let mut child = Command::new(program)
            .arg(format!("--root={}", host.run_dir(iid).join(runsc::STATE).display()))
            .args(words)
            .arg(host.known_as(iid).as_str())
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // What it makes of what gVisor answers, the tenant pays for.
        let _ = host.family(iid).helpers.admit(child.id());
        let (says, said) = mpsc::channel();
        let stderr = child.stderr.take();
        thread::spawn(move || says.send(stderr.map(last_line)));
        let within = if words[0] == "checkpoint" { KEPT_WITHIN } else { ANSWERED_WITHIN };
        let status = process::wait_within(&mut child, within).map_err(failed)?;
        let done = status.is_some_and(|status| status.success());
        let line = said.recv_timeout(SAID_WITHIN).ok().flatten().unwrap_or_default();
        match (done, line.as_str()) {
            (true, _) => Ok(()),
            (false, "") => Err(DriverError::Refused(format!("runsc {}: no word", words[0]))),
            (false, line) => Err(DriverError::Refused(format!("runsc {}: {line}", words[0]))),
        }
    }
}

/// The file that says that an instance stands still.
fn mark(host: &Host, iid: &Iid) -> PathBuf {
    host.run_dir(iid).join(STILL)
}

/// Of what a program says, however much that is.
fn last_line(mut from: impl Read) -> String {
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        said.extend_from_slice(&chunk[..count]);
        let late = said.len().saturating_sub(SAID_BYTES_MAX);
        said.drain(..late);
    }
    let said = String::from_utf8_lossy(&said);
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// Whether it lacks what the newer ones can: keep the memory of what goes on, serve files that came later.
pub(crate) fn is_old(version: &str) -> bool {
    release_year(version).is_some_and(|year| year < FIRST_RELEASE)
}

/// Whether it may listen where everybody in its network can give it orders, as old ones do: one that does not say when
/// it was released may be.
pub(crate) fn may_listen_to_all(version: &str) -> bool {
    release_year(version).is_none_or(|year| year < FIRST_RELEASE)
}

/// `0.0~20240729.0` and `release-20240729.0` are of 2024.
fn release_year(version: &str) -> Option<u32> {
    let digits: String = version
        .rsplit(['~', '-'])
        .next()?
        .chars()
        .take_while(char::is_ascii_digit)
        .take(4)
        .collect();
    digits.parse().ok()
}

/// Files of the sandbox that a process of gVisor's holds open and that are deleted. Its own memory has
/// never had a name.
fn deleted_files(pid: u32) -> Vec<String> {
    let open = process::open_files(pid);
    open.filter_map(|path| Some(path.strip_suffix(" (deleted)")?.to_owned()))
        .filter(|path| !path.starts_with("/memfd:") && !path.starts_with("/dev/"))
        .collect()
}

/// Removes the checkpoints of a sandbox that nothing refers to.
pub(crate) fn sweep(dir: &Path, kept: &[&str]) -> Result<(), SysError> {
    let named = |name: &OsStr| kept.iter().any(|kept| name == *kept);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !named(&entry.file_name()) {
            fsops::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Copies one to among those of another sandbox, whole or not at all. Only we can get at either.
pub(crate) fn copy(from: &Path, to: &Path, name: &str) -> Result<(), DriverError> {
    let failed = |source| DriverError::Host { stage: "copy checkpoint", source };
    let stored = |source| failed(SysError::io("store", to, source));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(stored)?;
    let unfinished = to.join(format!("{name}.new"));
    fsops::remove(&unfinished).map_err(failed)?;
    fsops::copy(from, &unfinished, None).map_err(failed)?;
    fsops::sync(&unfinished).map_err(failed)?;
    fs::rename(&unfinished, to.join(name)).and_then(|()| File::open(to)?.sync_all()).map_err(stored)
}

/// All checkpoints of a sandbox.
pub(crate) fn dir_of(state: &Path, uid: Uuid) -> PathBuf {
    state.join("checkpoints").join(uid.to_string())
}
