//! The drivers whose instances each have a shim: plain processes, bubblewrap and gVisor. They differ in
//! what the shim is to run; cgroup, run directory, and how it is asked are the same.

mod convert;
mod exec;
pub mod host;
pub(crate) mod launch;
pub(crate) mod ledger;
pub(crate) mod measure;
mod runtime_env;
mod skew;
mod spawner;
mod walls;

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::bubblewrap::Bubblewrap;
use crate::gvisor::Gvisor;
use crate::process::Process;
use crate::runtime::{Runtime, WarmPool};
use crate::storage::workspace::Kept;
use crate::{Adjust, Behind, Driver, DriverError, ExecOrder, Keep, Order, Started, StopOrder};
pub(crate) use exec::write_private;
use host::Host;
use sodium_model::{
    ExitRecord, Iid, Isolation, LimitStatus, Limits, Observed, Platform, Time, WallStatus,
};
use sodium_shim::client::{Client, ClientError};
use sodium_shim::exit;
use sodium_shim::launch::{FILE, LOCK, Launch};
use sodium_shim::protocol::{Phase, Request, State};
use sodium_sys::cgroup::{self, Applied, Usage};
use sodium_sys::{self as sys, SysError, clock, lock, socket};

/// What the workload's PATH is, inside and, for plain processes, outside.
pub(crate) const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// How long one that waits may take to be gone.
const END_WAITING_WITHIN: Duration = Duration::from_secs(20);
/// How long a released shim may take to be gone.
const RELEASE_MS_MAX: u64 = 2_000;
/// How long a shim may take until it listens. After that its silence means something.
pub(crate) const YOUNG_MS_MAX: u64 = 10_000;
/// How long the kernel may take to stop every process, or to let them go on.
const FREEZE_MS_MAX: u64 = 1_000;

/// A driver whose instances each have a shim.
#[derive(Debug)]
pub struct Supervisor {
    pub(crate) host: Arc<Host>,
    pub(crate) runtime: Box<dyn Runtime>,
}

impl Supervisor {
    /// Plain processes.
    pub fn process(host: Arc<Host>) -> Self {
        let runtime = Box::new(Process::new(&host));
        Self { host, runtime }
    }

    pub fn bubblewrap(host: Arc<Host>) -> Self {
        let runtime = Box::new(Bubblewrap::new(&host));
        Self { host, runtime }
    }

    /// gVisor, unavailable until [`Supervisor::find_out`] has returned; by the runsc and on the platform that are named,
    /// if they are.
    pub fn gvisor(host: Arc<Host>, program: Option<&Path>, platform: Option<Platform>) -> Self {
        let runtime = Box::new(Gvisor::new(&host, program, platform));
        Self { host, runtime }
    }

    /// Why the runtime's program is not there, if it is not.
    pub fn missing(&self) -> Option<&str> {
        self.runtime.missing()
    }

    /// Takes over what an earlier daemon found out about the runtime. False: nothing, or something is not as it was.
    pub fn recall(&self) -> bool {
        self.runtime.recall(&self.host)
    }

    /// Finds out how the runtime works here. False: it is not known yet, for nothing ran in that time.
    pub fn find_out(&self, within: Duration) -> bool {
        self.runtime.find_out(&self.host, within)
    }

    /// Who runs a trial.
    pub fn trial_id(&self) -> u32 {
        self.host.ids.trial()
    }

    /// `turn` spreads sandboxes over the cpus; `files` lie on the disk that is meant.
    pub(crate) fn wanted(
        &self,
        limits: &Limits,
        turn: u32,
        files: Option<&Path>,
    ) -> cgroup::Limits {
        let device = files.and_then(sys::disk::whole_device);
        ledger::to_cgroup(limits, self.runtime.counting(), u64::from(turn), device)
    }

    /// What became of each limit.
    pub(crate) fn statuses(
        &self,
        limits: &Limits,
        applied: &[Applied],
        kept: &Kept,
    ) -> Vec<LimitStatus> {
        let disk = ledger::Disk { kept, console_bytes: self.host.shares(limits).1 };
        ledger::statuses(limits, applied, self.runtime.counting(), &disk)
    }

    fn exit(&self, exit: exit::Exit, iid: &Iid) -> ExitRecord {
        convert::exit(exit, iid, self.runtime.counting().own())
    }

    /// What is kept of a sandbox stands still until it goes on.
    fn stands_still(&self, iid: &Iid) -> bool {
        let checkpoint = self.runtime.capabilities().checkpoint;
        checkpoint.is_some_and(|checkpoint| checkpoint.stands_still(&self.host, iid))
    }

    fn go_on(&self, iid: &Iid) -> Result<(), DriverError> {
        let checkpoint = self.runtime.capabilities().checkpoint;
        checkpoint.map_or(Ok(()), |checkpoint| checkpoint.go_on(&self.host, iid))
    }

    fn has_no_checkpoints(&self) -> DriverError {
        let isolation = self.runtime.isolation().as_str();
        DriverError::Refused(format!("isolation {isolation} has no checkpoints; gvisor has"))
    }

    /// Ends one that waits and is nobody's. What is left of it goes when the daemon next starts.
    pub(crate) fn end_waiting(&self, iid: &Iid) {
        let _ = self.host.group(iid).freeze(false);
        let _ = self.ask(iid, "discard", &Request::Kill { reason: "discarded".to_owned() });
        let _ = self.host.group(iid).kill();
        let deadline = Instant::now() + END_WAITING_WITHIN;
        while self.clean_up(iid).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn client(&self, iid: &Iid) -> Result<(Client, State), ClientError> {
        Client::connect(&self.host.socket(iid), self.host.epoch)
    }

    pub(crate) fn ask(
        &self,
        iid: &Iid,
        stage: &'static str,
        request: &Request,
    ) -> Result<(), DriverError> {
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

impl Driver for Supervisor {
    fn isolation(&self) -> Isolation {
        self.runtime.isolation()
    }

    fn runtime(&self) -> Result<String, String> {
        self.runtime.version()
    }

    fn unenforced(&self) -> Vec<(&'static str, String)> {
        let disk = self.host.workspaces.volumes.kind();
        ledger::unenforced(&self.host.cgroups, self.runtime.counting(), disk)
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
        let warm = self.runtime.capabilities().warm;
        if let Some(claimed) = warm.and_then(|warm| warm.claim(self, order)) {
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
        let bytes = self.host.shares(limits).0;
        let kept = self.host.workspaces.adjust(order.uid, order.host_uid, bytes);
        Ok(self.statuses(limits, &applied, &kept))
    }

    fn not_yet(&self) -> Option<String> {
        self.runtime.not_yet()
    }

    fn is_dear(&self) -> bool {
        self.runtime.is_dear()
    }

    fn can_wait(&self) -> bool {
        self.runtime.capabilities().warm.is_some()
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
        let checkpoint = self.runtime.capabilities().checkpoint;
        checkpoint.ok_or_else(|| self.has_no_checkpoints())?.take(&self.host, iid, order)
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
        let warm = self.runtime.capabilities().warm.ok_or_else(|| {
            let isolation = self.runtime.isolation().as_str();
            DriverError::Refused(format!("isolation {isolation} has none that wait; gvisor has"))
        })?;
        warm.start_ahead(self, image, limits)
    }

    fn warm(&self, image: &str) -> usize {
        self.runtime.capabilities().warm.map_or(0, |warm| warm.count(image))
    }

    fn discard_all(&self) {
        let waiting = self.runtime.capabilities().warm.map(WarmPool::take_all).unwrap_or_default();
        waiting.iter().for_each(|iid| self.end_waiting(iid));
    }

    fn discard(&self, iid: &Iid) {
        self.end_waiting(iid);
    }

    fn usage(&self, iid: &Iid) -> Usage {
        let mut usage = self.host.measures.usage(iid, &self.host.group(iid));
        let own = self.runtime.counting().own();
        usage.pids = usage.pids.saturating_sub(own);
        usage.pids_peak = usage.pids_peak.saturating_sub(own);
        usage
    }

    fn workload_cpu_usec(&self, iid: &Iid) -> u64 {
        let group = self.host.group(iid);
        group.cpu_usec().saturating_sub(self.runtime.own_cpu_usec(&group))
    }

    fn exec(&self, iid: &Iid, order: &ExecOrder<'_>) -> Result<UnixStream, DriverError> {
        self.run_inside(iid, order)
    }

    fn connect(&self, iid: &Iid) -> Option<UnixStream> {
        socket::connect(&self.host.socket(iid)).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests;
