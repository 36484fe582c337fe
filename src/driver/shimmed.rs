//! The drivers whose instances each have a shim: plain processes, bubblewrap and gVisor. They differ in
//! what the shim is to run; cgroup, run directory, and how it is asked are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use crate::driver::bwrap::{self, Bubblewrap};
use crate::driver::host::Host;
use crate::driver::runsc::{self, Guest, Runsc};
use crate::driver::shown::HOME;
use crate::driver::{Driver, DriverError, ExecOrder, Keep, Order, Started, StopOrder, process};
use crate::model::{
    ExitRecord, Iid, Isolation, LimitStatus, Limits, Observed, Platform, SandboxName, Time,
};
use crate::shim::client::{Client, ClientError};
use crate::shim::exit;
use crate::shim::launch::{Confinement, FILE, LOCK, Launch};
use crate::shim::protocol::{Phase, Request, State};
use crate::sys::cgroup::{self, Usage};
use crate::sys::lock::Lock;
use crate::sys::{self, SysError, clock, lock};

pub(super) mod checkpoint;
mod convert;
mod exec;
mod foreign;
mod ledger;
mod warm;

use ledger::Counting;
use warm::Ready;

/// What the workload's PATH is, inside and, for plain processes, outside.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// The file in which it is remembered how gVisor works here.
const PLATFORM: &str = "gvisor-platform";
/// How long a released shim may take to be gone.
const RELEASE_MS_MAX: u64 = 2_000;
/// How long a shim may take until it listens. After that its silence means something.
pub(super) const YOUNG_MS_MAX: u64 = 10_000;
/// How long the kernel may take to stop every process, or to let them go on.
const FREEZE_MS_MAX: u64 = 1_000;

/// How a workload is confined.
#[derive(Debug)]
enum Bundle {
    Bubblewrap(Bubblewrap),
    Gvisor(Gvisor),
    Process,
}

/// runsc, and once that is found out, how it works here.
#[derive(Debug)]
struct Gvisor {
    runsc: Runsc,
    platform: OnceLock<Result<Platform, String>>,
    /// Guests that were started ahead.
    ready: Mutex<Vec<Ready>>,
}

/// A driver whose instances each have a shim.
#[derive(Debug)]
pub struct Shimmed {
    host: Arc<Host>,
    bundle: Bundle,
}

impl Shimmed {
    pub fn bubblewrap(host: Arc<Host>) -> Result<Self, DriverError> {
        let bundle = Bundle::Bubblewrap(Bubblewrap::detect(&host.paths.run)?);
        Ok(Self { host, bundle })
    }

    /// gVisor, not yet to be had: see [`Shimmed::choose_platform`].
    pub fn gvisor(host: Arc<Host>, program: Option<&Path>) -> Result<Self, DriverError> {
        let runsc = Runsc::detect(program, &host.paths.run, &host.paths.shim)?;
        let gvisor = Gvisor { runsc, platform: OnceLock::new(), ready: Mutex::default() };
        Ok(Self { host, bundle: Bundle::Gvisor(gvisor) })
    }

    /// Takes over how gVisor works on this host from an earlier daemon that found it out. False: none
    /// has, or something is not as it was.
    pub fn remember_platform(&self, asked: Option<Platform>) -> bool {
        let Bundle::Gvisor(Gvisor { runsc, platform, .. }) = &self.bundle else { return true };
        let remembered = runsc.remembered(asked, &self.host.paths.state.join(PLATFORM));
        remembered.is_some_and(|found| platform.set(Ok(found)).is_ok())
    }

    /// Finds it out; takes seconds if a platform hangs.
    pub fn choose_platform(&self, asked: Option<Platform>) {
        let Bundle::Gvisor(Gvisor { runsc, platform, .. }) = &self.bundle else { return };
        platform.get_or_init(|| {
            let memory = self.host.paths.state.join(PLATFORM);
            let found = runsc.choose(asked, &self.host.paths.run);
            found.inspect(|platform| runsc.remember(asked, *platform, &memory))
        });
    }

    pub fn process(host: Arc<Host>) -> Self {
        Self { host, bundle: Bundle::Process }
    }

    /// Everything the shim is told. Pure but for the search for a program. Without a workspace, it is of
    /// something that waits for whom it will be.
    fn launch(
        &self,
        order: &Order<'_>,
        workspace: Option<&Path>,
        image: Option<&Path>,
    ) -> Result<Launch, DriverError> {
        let host = &self.host;
        let spec = order.spec;
        let (program, args, confinement) = self.way(order, workspace, image)?;
        let plain = matches!(self.bundle, Bundle::Process);
        let gvisor = matches!(self.bundle, Bundle::Gvisor(_));
        let work_dir = workspace.filter(|_| plain).map_or_else(|| "/".into(), Path::to_owned);
        // gVisor's own processes are the ones to be started; its guest's user is in the bundle.
        let user = (crate::sys::is_root() && !gvisor).then_some((order.host_uid, order.host_uid));
        let env = if gvisor {
            vec![("PATH".to_owned(), SEARCH_PATH.to_owned())]
        } else {
            {
                let home = workspace.map_or_else(|| HOME.into(), |workspace| self.home(workspace));
                environment(order.name, &order.spec.env, &home).into_iter().collect()
            }
        };
        let open_files = ledger::open_files(&spec.limits).map(|(value, _)| value);
        let open_files_max = open_files.filter(|_| !gvisor);
        Ok(Launch {
            iid: order.iid.to_string(),
            name: order.name.to_string(),
            uid: order.uid.to_string(),
            generation: order.generation,
            epoch: order.epoch,
            program,
            args,
            env,
            work_dir,
            user,
            group: host.group(order.iid),
            open_files_max,
            tty: spec.tty.then_some((80, 24)),
            confinement,
            warm: workspace.is_none(),
            spool_dir: host.console(order.uid),
            spool_bytes_max: host.console_bytes(),
            timeout_ms: (spec.limits.timeout_seconds > 0)
                .then_some(spec.limits.timeout_seconds * 1000),
            stop_signal: convert::signal_number(&spec.stop.signal),
            stop_grace_ms: spec.stop.grace.0,
            exit_path: host.exit_path(order.iid),
        })
    }

    /// The program on the host, its arguments, and who confines what.
    fn way(
        &self,
        order: &Order<'_>,
        workspace: Option<&Path>,
        image: Option<&Path>,
    ) -> Result<(String, Vec<String>, Confinement), DriverError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(match &self.bundle {
            Bundle::Bubblewrap(bwrap) => (
                text(&bwrap.program),
                bwrap.args(order),
                Confinement::Bubblewrap { inherited: bwrap.inherited(own_files(workspace)?) },
            ),
            Bundle::Gvisor(gvisor) => {
                let (runsc, run_dir) = (&gvisor.runsc, self.host.run_dir(order.iid));
                let platform = gvisor.platform().map_err(DriverError::Refused)?;
                let home = workspace.map(|workspace| (workspace.to_owned(), runsc.workspace()));
                let mut binds: Vec<_> = home.into_iter().collect();
                if order.spec.limits.memory_mb > 0 {
                    binds.push((run_dir.join(runsc::MEMORY_INFO), "/proc/meminfo".into()));
                }
                let confinement = Confinement::Gvisor {
                    binds,
                    whole_proc: runsc.whole_proc(),
                    cpus: runsc::cpus(&order.spec.limits),
                    pid_file: run_dir.join(runsc::PID),
                    user_log: run_dir.join(runsc::USER_LOG),
                    console: run_dir.join(runsc::CONSOLE),
                };
                (text(&runsc.program), runsc.args(order, &run_dir, platform, image), confinement)
            }
            Bundle::Process => (
                process::program(order, SEARCH_PATH),
                order.spec.resolved_command(),
                Confinement::Itself {
                    read_only: process::read_only(),
                    writable: process::writable(own_files(workspace)?),
                },
            ),
        })
    }

    fn home<'w>(&self, workspace: &'w Path) -> Cow<'w, str> {
        match self.bundle {
            Bundle::Bubblewrap(_) | Bundle::Gvisor(_) => HOME.into(),
            Bundle::Process => workspace.to_string_lossy(),
        }
    }

    /// What the runtime is to find in the run directory.
    fn bundle_files(&self, order: &Order<'_>, waits: bool) -> Vec<(&'static str, String)> {
        let Bundle::Gvisor(Gvisor { runsc, .. }) = &self.bundle else { return Vec::new() };
        let guest = Guest {
            hostname: order.name.as_str(),
            command: &order.spec.resolved_command(),
            env: &environment(order.name, &order.spec.env, HOME),
            host_uid: order.host_uid,
            tty: order.spec.tty,
            network: order.spec.network,
            limits: &order.spec.limits,
            waits,
        };
        let memory = runsc::memory_info(&order.spec.limits);
        let bundle = (runsc::CONFIG, runsc.bundle(&guest).to_string());
        [bundle].into_iter().chain(memory.map(|text| (runsc::MEMORY_INFO, text))).collect()
    }

    /// Made under a temporary name: a run directory that is there is whole, and its lock is held.
    fn make_run_dir(&self, order: &Order<'_>, launch: &Launch) -> Result<Lock, SysError> {
        let (dir, unfinished) = (self.host.run_dir(order.iid), self.host.unfinished(order.iid));
        let failed = |source| SysError::io("make", &dir, source);
        let _ = fs::remove_dir_all(&unfinished);
        let json = serde_json::to_string(launch).expect("a launch has string keys");
        let files = [(FILE, json)].into_iter().chain(self.bundle_files(order, launch.warm));
        fs::create_dir(&unfinished).map_err(failed)?;
        for (name, text) in files {
            fs::write(unfinished.join(name), text).map_err(failed)?;
        }
        // Nobody looks there yet, so nobody can be in the way.
        let taken = lock::try_take(&unfinished.join(LOCK))?;
        let lock = taken.ok_or_else(|| failed(io::ErrorKind::WouldBlock.into()))?;
        fs::rename(&unfinished, &dir).map_err(failed)?;
        Ok(lock)
    }

    /// Orders a shim for the instance and hands it the lock: it holds it from its first moment.
    fn order_shim(&self, iid: &Iid, held: Lock) -> Result<UnixStream, DriverError> {
        let dir = self.host.run_dir(iid);
        let ordered = self.host.forks.order(&dir, lock::hand_over(held).as_fd());
        let program = self.host.paths.shim.clone();
        let control = ordered.map_err(|source| DriverError::Spawn { program, source })?;
        self.host.ordered().insert(iid.clone(), clock::boot_ms());
        Ok(control)
    }

    fn prepare(&self, order: &Order<'_>) -> Result<(Vec<LimitStatus>, Lock), DriverError> {
        let host = |stage| move |source| DriverError::Host { stage, source };
        let image = self.wake(order)?;
        let workspace = self.workspace(order)?;
        let launch = self.launch(order, Some(&workspace), image.as_deref())?;
        let group = self.host.group(order.iid);
        group.create().map_err(host("make cgroup"))?;
        let applied = group.apply(&self.wanted(&order.spec.limits)).map_err(host("set limits"))?;
        let lock = self.make_run_dir(order, &launch).map_err(host("make run directory"))?;
        Ok((ledger::statuses(&order.spec.limits, &applied, self.counting()), lock))
    }

    /// The sandbox's own files, with those that are to be in there.
    fn workspace(&self, order: &Order<'_>) -> Result<PathBuf, DriverError> {
        let spaces = &self.host.workspaces;
        let prepare = || {
            if order.take_back {
                spaces.take_back(order.uid, order.host_uid, order.name)?;
            }
            spaces.prepare(order.uid, order.host_uid, order.image_files, &order.spec.files)
        };
        prepare().map_err(|source| DriverError::Host { stage: "prepare workspace", source })
    }

    fn wanted(&self, limits: &Limits) -> cgroup::Limits {
        ledger::to_cgroup(limits, self.counting())
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

/// Only gVisor's guests can wait for theirs.
fn own_files(workspace: Option<&Path>) -> Result<&Path, DriverError> {
    workspace.ok_or_else(|| DriverError::Refused("it has no workspace".to_owned()))
}

/// Built from empty: nothing of the daemon's own environment is in it.
fn environment(
    name: &SandboxName,
    own: &BTreeMap<String, String>,
    home: &str,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [
        ("HOME", home),
        ("PATH", SEARCH_PATH),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("USER", "container"),
        ("SODIUM_SANDBOX", name.as_str()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    env.extend(own.clone());
    env
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
            Bundle::Bubblewrap(bwrap) => Ok(bwrap.version.clone()),
            Bundle::Gvisor(gvisor) => {
                let (version, platform) = (&gvisor.runsc.version, gvisor.platform()?);
                Ok(format!("runsc {version}, {}", platform.as_str()))
            }
            Bundle::Process => Ok("the kernel's own means".to_owned()),
        }
    }

    fn unenforced(&self) -> Vec<(&'static str, String)> {
        ledger::unenforced(&self.host.cgroups, self.counting())
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
        let request = if how.force {
            Request::Kill { reason }
        } else {
            // What gVisor has stand still would not see the signal.
            self.go_on(iid)?;
            let signal = convert::signal_number(how.signal);
            Request::Stop { signal, grace_ms: how.grace_ms, reason }
        };
        self.ask(iid, "stop", &request)
    }

    fn adjust(&self, iid: &Iid, limits: &Limits) -> Result<Vec<LimitStatus>, DriverError> {
        let host = |source| DriverError::Host { stage: "set limits", source };
        let group = self.host.group(iid);
        let applied = group.apply(&self.wanted(limits)).map_err(host)?;
        let timeout_ms = (limits.timeout_seconds > 0).then_some(limits.timeout_seconds * 1000);
        self.ask(iid, "set time limit", &Request::Deadline { timeout_ms })?;
        Ok(ledger::statuses(limits, &applied, self.counting()))
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
        self.host.group(iid).kill().map_err(host)
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
        self.host.group(iid).remove().map_err(host)?;
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
        let mut usage = self.host.group(iid).usage();
        if let Counting::Host { own } = self.counting() {
            usage.pids = usage.pids.saturating_sub(own);
            usage.pids_peak = usage.pids_peak.saturating_sub(own);
        }
        usage
    }

    fn workload_cpu_usec(&self, iid: &Iid) -> u64 {
        let group = self.host.group(iid);
        let all = group.usage().cpu_usec;
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
        UnixStream::connect(self.host.socket(iid)).ok()
    }
}

impl Gvisor {
    fn ready(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.ready.lock().expect("nobody panics while holding those that are ready")
    }

    fn platform(&self) -> Result<Platform, String> {
        let trying = || Err("finding out which platform of gVisor works on this host".to_owned());
        self.platform.get().cloned().unwrap_or_else(trying)
    }
}

#[cfg(test)]
pub(crate) mod tests;
