//! The drivers whose instances each have a shim: plain processes, bubblewrap and gVisor. They differ in
//! what the shim is to run; cgroup, run directory, and how it is asked are the same.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use crate::bwrap::{self, Bubblewrap};
use crate::host::Host;
use crate::process;
use crate::runsc::{self, Runsc};
use crate::shown;
use crate::workspace::Kept;
use crate::{Adjust, Behind, Driver, DriverError, ExecOrder, Keep, Order, Started, StopOrder};
use sodium_model::{
    ExitRecord, Iid, Isolation, LimitStatus, Limits, Observed, Platform, Time, WallStatus,
};
use sodium_shim::client::{Client, ClientError};
use sodium_shim::exit;
use sodium_shim::launch::{FILE, LOCK, Launch};
use sodium_shim::protocol::{Phase, Request, State};
use sodium_sys::cgroup::{self, Applied, Usage};
use sodium_sys::error::chain;
use sodium_sys::{self as sys, SysError, clock, lock, socket};

mod begin;
pub(super) mod checkpoint;
mod convert;
mod exec;
mod foreign;
mod hints;
mod ledger;
pub(super) mod measure;
mod walls;
mod warm;

use ledger::Counting;
use warm::Ready;

/// What the workload's PATH is, inside and, for plain processes, outside.
pub(super) const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// The file in which it is remembered how gVisor works here.
const PLATFORM: &str = "gvisor-platform";
const TRYING: &str = "finding out which platform of gVisor works on this host";
/// How long a released shim may take to be gone.
const RELEASE_MS_MAX: u64 = 2_000;
/// How long a shim may take until it listens. After that its silence means something.
pub(super) const YOUNG_MS_MAX: u64 = 10_000;
/// How long the kernel may take to stop every process, or to let them go on.
const FREEZE_MS_MAX: u64 = 1_000;

/// How a workload is confined.
///
/// What a runtime has started goes on without its program, and is watched and ended as before; whatever needs the
/// program is refused with the reason for which there is none.
#[derive(Debug)]
enum Bundle {
    Bubblewrap(Result<Bubblewrap, String>),
    Gvisor(Gvisor),
    Process,
}

/// runsc, and once that is found out, how it works here.
#[derive(Debug)]
struct Gvisor {
    runsc: Result<Runsc, String>,
    platform: OnceLock<Result<Platform, String>>,
    /// What it was too slow for, so far.
    slow: Mutex<Option<String>>,
    /// Guests that were started ahead.
    ready: Mutex<Vec<Ready>>,
    /// The id that such a guest is given next; `None`: it is to be read what it was.
    next_id: Mutex<Option<u32>>,
}

/// A driver whose instances each have a shim.
#[derive(Debug)]
pub struct Shimmed {
    host: Arc<Host>,
    bundle: Bundle,
}

impl Shimmed {
    pub fn bubblewrap(host: Arc<Host>) -> Self {
        let found = Bubblewrap::detect(&host.paths.run, &host.paths.shim);
        Self { host, bundle: Bundle::Bubblewrap(found.map_err(|error| chain(&error))) }
    }

    /// gVisor, unavailable until [`Shimmed::choose_platform`] has returned.
    pub fn gvisor(host: Arc<Host>, program: Option<&Path>) -> Self {
        let found = Runsc::detect(program, &host.paths.run, &host.paths.shim);
        let runsc = found.map_err(|error| chain(&error));
        let gvisor = Gvisor {
            runsc,
            platform: OnceLock::new(),
            slow: Mutex::default(),
            ready: Mutex::default(),
            next_id: Mutex::default(),
        };
        Self { host, bundle: Bundle::Gvisor(gvisor) }
    }

    /// Why the runtime's program is not there, if it is not.
    pub fn missing(&self) -> Option<&str> {
        match &self.bundle {
            Bundle::Bubblewrap(found) => found.as_ref().err().map(String::as_str),
            Bundle::Gvisor(gvisor) => gvisor.runsc.as_ref().err().map(String::as_str),
            Bundle::Process => None,
        }
    }

    /// Takes over how gVisor works on this host from an earlier daemon that found it out. False: none
    /// has, or something is not as it was.
    pub fn remember_platform(&self, asked: Option<Platform>) -> bool {
        let Bundle::Gvisor(Gvisor { runsc: Ok(runsc), platform, .. }) = &self.bundle else {
            return true;
        };
        let remembered = runsc.remembered(asked, &self.host.paths.state.join(PLATFORM));
        remembered.is_some_and(|found| platform.set(Ok(found)).is_ok())
    }

    /// Finds it out, giving each platform that long. False: it is not known yet, for nothing ran in that time, which
    /// a busy host is as good a reason for as a platform that hangs.
    pub fn choose_platform(&self, asked: Option<Platform>, within: Duration) -> bool {
        let Bundle::Gvisor(gvisor @ Gvisor { runsc: Ok(runsc), platform, .. }) = &self.bundle
        else {
            return true;
        };
        let found = match runsc.choose(asked, &self.host.paths.run, &self.host.ids, within) {
            Ok(found) => {
                // What is not sure is found out again by the next daemon.
                if found.is_sure {
                    runsc.remember(asked, found.platform, &self.host.paths.state.join(PLATFORM));
                }
                Ok(found.platform)
            }
            Err(unfit) if unfit.is_slow => {
                *gvisor.slow() = Some(unfit.why);
                return false;
            }
            Err(unfit) => {
                let why = unfit.why;
                Err(format!("runsc {} works with no platform here: {why}", runsc.version))
            }
        };
        // Whoever was first has found out the same.
        let _ = platform.set(found);
        true
    }

    pub fn process(host: Arc<Host>) -> Self {
        // Without it, `prove` says that there is no such program.
        let _ = shown::add_init(&host.paths.run, &host.paths.shim);
        Self { host, bundle: Bundle::Process }
    }

    /// Who runs a trial.
    pub fn trial_id(&self) -> u32 {
        self.host.ids.trial()
    }

    /// `turn` spreads sandboxes over the cpus; `files` lie on the disk that is meant.
    fn wanted(&self, limits: &Limits, turn: u32, files: Option<&Path>) -> cgroup::Limits {
        let device = files.and_then(sys::disk::whole_device);
        ledger::to_cgroup(limits, self.counting(), u64::from(turn), device)
    }

    /// What became of each limit.
    fn statuses(&self, limits: &Limits, applied: &[Applied], kept: &Kept) -> Vec<LimitStatus> {
        let disk = ledger::Disk { kept, console_bytes: self.shares(limits).1 };
        ledger::statuses(limits, applied, self.counting(), &disk)
    }

    fn exit(&self, exit: exit::Exit, iid: &Iid) -> ExitRecord {
        let own = match self.counting() {
            Counting::Host { own } => own,
            Counting::Guest => 0,
        };
        convert::exit(exit, iid, own)
    }

    fn counting(&self) -> Counting {
        match self.bundle {
            Bundle::Bubblewrap(_) => Counting::Host { own: bwrap::OWN_PROCESSES },
            Bundle::Gvisor(_) => Counting::Guest,
            Bundle::Process if sys::is_root() => Counting::Host { own: process::OWN_PROCESSES },
            Bundle::Process => Counting::Host { own: 0 },
        }
    }

    fn client(&self, iid: &Iid) -> Result<(Client, State), ClientError> {
        Client::connect(&self.host.socket(iid), self.host.epoch)
    }

    fn ask(&self, iid: &Iid, stage: &'static str, request: &Request) -> Result<(), DriverError> {
        let shim = |source| DriverError::Shim { stage, source };
        let (mut client, _) = self.client(iid).map_err(shim)?;
        client.ask(request).map_err(shim)
    }

    fn observed(&self, state: State, iid: &Iid) -> Observed {
        let started_at = state.started_at_ms.map(Time);
        match (state.phase, state.exit) {
            (Phase::Exited, Some(exit)) => Observed::Exited { exit: self.exit(exit, iid) },
            (Phase::Launching, _) => Observed::Launching,
            (Phase::Running, _) => Observed::Running {
                pid: state.pid,
                started_at: started_at.unwrap_or_default(),
                frozen: self.host.group(iid).is_frozen() || self.stands_still(iid),
            },
            (Phase::Stopping | Phase::Exited, _) => {
                Observed::Stopping { pid: state.pid, started_at }
            }
        }
    }

    /// Nobody answers: the lock and the cgroup tell whether that is an end.
    fn observe_silent(&self, iid: &Iid) -> Result<Observed, DriverError> {
        let host = |source| DriverError::Host { stage: "look", source };
        let group = self.host.group(iid);
        if lock::is_held(&self.host.run_dir(iid).join(LOCK)).map_err(host)? {
            // Ours and just born: its socket is not there yet.
            let ordered_at = self.host.ordered().get(iid).copied();
            let recent = |at| clock::boot_ms() < at + YOUNG_MS_MAX;
            let young = ordered_at.is_some_and(recent) && !self.host.socket(iid).exists();
            return Ok(if young { Observed::Launching } else { Observed::Unknown });
        }
        if group.is_populated() {
            return Ok(Observed::Orphan);
        }
        let exit = exit::load(&self.host.exit_path(iid)).map(|exit| self.exit(exit, iid));
        let took_over = lock::is_noted(&self.host.run_dir(iid).join(LOCK)).map_err(host)?;
        let began = took_over || exit.is_some();
        Ok(Observed::Gone { exit, began })
    }

    /// The sandbox of an instance, by what its shim was told.
    fn sandbox_of(&self, iid: &Iid) -> Option<Uuid> {
        let text = fs::read(self.host.run_dir(iid).join(FILE)).ok()?;
        serde_json::from_slice::<Launch>(&text).ok()?.uid.parse().ok()
    }

    fn wait_released(&self, iid: &Iid) -> Result<(), DriverError> {
        let deadline = clock::boot_ms() + RELEASE_MS_MAX;
        let path = self.host.run_dir(iid).join(LOCK);
        let host = |source| DriverError::Host { stage: "release shim", source };
        while lock::is_held(&path).map_err(host)? {
            if clock::boot_ms() > deadline {
                return Err(DriverError::Refused(format!(
                    "the shim of {iid} was released and stays"
                )));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Driver for Shimmed {
    fn isolation(&self) -> Isolation {
        match self.bundle {
            Bundle::Bubblewrap(_) => Isolation::Bubblewrap,
            Bundle::Gvisor(_) => Isolation::Gvisor,
            Bundle::Process => Isolation::Process,
        }
    }

    fn runtime(&self) -> Result<String, String> {
        match &self.bundle {
            Bundle::Bubblewrap(bwrap) => {
                bwrap.as_ref().map(|bwrap| bwrap.version.clone()).map_err(Clone::clone)
            }
            Bundle::Gvisor(gvisor) => {
                let version = &gvisor.runsc.as_ref().map_err(Clone::clone)?.version;
                let platform = gvisor.platform()?;
                Ok(format!("runsc {version}, {}", platform.as_str()))
            }
            Bundle::Process => Ok("the kernel's own means".to_owned()),
        }
    }

    fn unenforced(&self) -> Vec<(&'static str, String)> {
        let disk = self.host.workspaces.volumes.kind();
        ledger::unenforced(&self.host.cgroups, self.counting(), disk)
    }

    fn missing_walls(&self, behind: Behind) -> Vec<WallStatus> {
        self.foresee_walls(behind)
    }

    fn walls(&self, pid: u32, behind: Behind) -> Vec<WallStatus> {
        self.look_at_walls(pid, behind)
    }

    fn observe(&self, iid: &Iid) -> Result<Observed, DriverError> {
        match self.client(iid) {
            Ok((_, state)) => Ok(self.observed(state, iid)),
            Err(ClientError::Version(_)) => Ok(self.observe_foreign(iid)),
            Err(_) => self.observe_silent(iid),
        }
    }

    fn start(&self, order: &Order<'_>) -> Result<Started, DriverError> {
        if let Some(claimed) = self.claim(order) {
            return Ok(claimed);
        }
        let (limits, lock) = self.prepare(order)?;
        let link = self.order_shim(order.iid, lock)?;
        Ok(Started { link: Some(link), limits })
    }

    fn stop(&self, iid: &Iid, how: &StopOrder<'_>) -> Result<(), DriverError> {
        if matches!(self.client(iid), Err(ClientError::Version(_))) {
            return self.stop_foreign(iid, how);
        }
        let reason = how.reason.to_owned();
        // What gVisor has stand still would not see a signal, and goes on by a runsc that works alone.
        let request = if how.force || self.go_on(iid).is_err() {
            Request::Kill { reason }
        } else {
            let signal = convert::signal_number(how.signal);
            Request::Stop { signal, grace_ms: how.grace_ms, reason }
        };
        self.ask(iid, "stop", &request)
    }

    fn adjust(&self, iid: &Iid, order: &Adjust<'_>) -> Result<Vec<LimitStatus>, DriverError> {
        let host = |source| DriverError::Host { stage: "set limits", source };
        let (family, limits) = (self.host.family(iid), order.limits);
        let files = self.host.workspaces.path(order.uid);
        let applied =
            family.apply(&self.wanted(limits, order.host_uid, Some(&files))).map_err(host)?;
        let timeout_ms = (limits.timeout_seconds > 0).then_some(limits.timeout_seconds * 1000);
        self.ask(iid, "set time limit", &Request::Deadline { timeout_ms })?;
        let bytes = self.shares(limits).0;
        let kept = self.host.workspaces.adjust(order.uid, order.host_uid, bytes);
        Ok(self.statuses(limits, &applied, &kept))
    }

    fn not_yet(&self) -> Option<String> {
        let Bundle::Gvisor(gvisor) = &self.bundle else { return None };
        let is_trying = gvisor.runsc.is_ok() && gvisor.platform.get().is_none();
        is_trying.then(|| gvisor.trying())
    }

    fn can_freeze(&self) -> bool {
        self.host.cgroups.can_freeze()
    }

    fn freeze(&self, iid: &Iid, frozen: bool) -> Result<(), DriverError> {
        let stage = if frozen { "freeze" } else { "thaw" };
        let host = |source| DriverError::Host { stage, source };
        let group = self.host.group(iid);
        group.freeze(frozen).map_err(host)?;
        if !frozen {
            self.go_on(iid)?;
        }
        let deadline = clock::boot_ms() + FREEZE_MS_MAX;
        while group.is_frozen() != frozen {
            if clock::boot_ms() > deadline {
                let why = format!("{iid}: the kernel did not {stage} it");
                return Err(DriverError::Refused(why));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn checkpoint(&self, iid: &Iid, order: &Keep<'_>) -> Result<u64, DriverError> {
        self.keep(iid, order)
    }

    fn kill_orphan(&self, iid: &Iid) -> Result<(), DriverError> {
        let host = |source| DriverError::Host { stage: "kill orphan", source };
        self.host.family(iid).kill().map_err(host)
    }

    fn kill_shim(&self, iid: &Iid) -> Result<(), DriverError> {
        let host = |source| DriverError::Host { stage: "kill shim", source };
        let dir = self.host.run_dir(iid);
        let own = self.host.run_dir(&self.host.known_as(iid));
        if !convert::kill_holder(&dir.join(LOCK), &own).map_err(host)? {
            // No shim has taken the lock over yet: then its order is what holds it.
            self.host.forks.abandon();
        }
        self.kill_orphan(iid)
    }

    fn clean_up(&self, iid: &Iid) -> Result<(), DriverError> {
        let host = |source| DriverError::Host { stage: "clean up", source };
        match self.client(iid) {
            Ok((mut client, _)) => {
                let released = client.ask(&Request::Release);
                released.map_err(|source| DriverError::Shim { stage: "release shim", source })?;
                self.wait_released(iid)?;
            }
            Err(ClientError::Version(_)) => self.release_foreign(iid)?,
            Err(_) if lock::is_held(&self.host.run_dir(iid).join(LOCK)).map_err(host)? => {
                return Err(DriverError::Refused(format!("the shim of {iid} does not answer")));
            }
            Err(_) => (),
        }
        let own = self.host.known_as(iid);
        self.host.family(iid).remove().map_err(host)?;
        if let Some(uid) = self.sandbox_of(&own) {
            self.host.workspaces.drop_passing(uid).map_err(host)?;
        }
        // The name it was started under first: it is found by the other one.
        let remains = [
            self.host.run_dir(&own),
            self.host.run_dir(iid),
            self.host.unfinished(iid),
            self.host.exit_path(iid),
        ];
        for path in remains {
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(host(SysError::io("remove", &path, source)));
                }
                Ok(()) | Err(_) => (),
            }
        }
        self.host.measures.forget(iid);
        self.host.forget_groups(iid);
        self.host.forget_groups(&own);
        let mut ordered = self.host.ordered();
        ordered.remove(iid);
        ordered.remove(&own);
        Ok(())
    }

    fn warm_up(&self, image: &str, limits: &Limits) -> Result<(), DriverError> {
        self.start_ahead(image, limits)
    }

    fn warm(&self, image: &str) -> usize {
        self.count_ready(image)
    }

    fn discard_all(&self) {
        let Bundle::Gvisor(gvisor) = &self.bundle else { return };
        let waiting = std::mem::take(&mut *gvisor.ready());
        waiting.iter().for_each(|ready| Self::discard(self, &ready.iid));
    }

    fn discard(&self, iid: &Iid) {
        Self::discard(self, iid);
    }

    fn usage(&self, iid: &Iid) -> Usage {
        let mut usage = self.host.measures.usage(iid, &self.host.group(iid));
        if let Counting::Host { own } = self.counting() {
            usage.pids = usage.pids.saturating_sub(own);
            usage.pids_peak = usage.pids_peak.saturating_sub(own);
        }
        usage
    }

    fn workload_cpu_usec(&self, iid: &Iid) -> u64 {
        let group = self.host.group(iid);
        let all = group.cpu_usec();
        if !matches!(self.bundle, Bundle::Gvisor(_)) {
            return all;
        }
        let runtime = group.pids().into_iter().filter(|pid| runsc::is_own_process(*pid));
        all.saturating_sub(runtime.filter_map(sys::process::cpu_usec).sum())
    }

    fn exec(&self, iid: &Iid, order: &ExecOrder<'_>) -> Result<UnixStream, DriverError> {
        self.run_inside(iid, order)
    }

    fn connect(&self, iid: &Iid) -> Option<UnixStream> {
        socket::connect(&self.host.socket(iid)).ok()
    }
}

impl Gvisor {
    fn ready(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.ready.lock().expect("nobody panics while holding those that are ready")
    }

    /// The program, or why whatever needs it is refused.
    fn runsc(&self) -> Result<&Runsc, DriverError> {
        self.runsc.as_ref().map_err(|why| DriverError::Refused(format!("gvisor: {why}")))
    }

    fn platform(&self) -> Result<Platform, String> {
        self.platform.get().cloned().unwrap_or_else(|| Err(self.trying()))
    }

    fn slow(&self) -> MutexGuard<'_, Option<String>> {
        self.slow.lock().expect("nobody panics while holding why it is slow")
    }

    /// Why it is not known yet.
    fn trying(&self) -> String {
        let slow = self.slow().as_ref().map(|why| format!("; so far, {why}"));
        format!("{TRYING}{}", slow.unwrap_or_default())
    }
}

#[cfg(test)]
pub(crate) mod tests;
