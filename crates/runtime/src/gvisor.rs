//! gVisor: a kernel of its own between a sandbox and the host's, by runsc.

pub(crate) mod checkpoint;
mod counted;
mod platform;
pub mod runsc;
mod warm;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::DriverError;
use crate::runtime::{Capabilities, Enter, Entered, Prepared, Role, Runtime, Start};
use crate::storage::workspace::Place;
use crate::supervise::host::Host;
use crate::supervise::ledger::Counting;
use crate::supervise::{SEARCH_PATH, write_private};
use runsc::{Guest, Runsc};
use sodium_model::{Isolation, Limits, Network, Platform};
use sodium_shim::exec::order::Way;
use sodium_shim::exec::{FILES, PID};
use sodium_shim::launch::Confinement;
use sodium_sys::cgroup::Group;
use sodium_sys::error::chain;
use sodium_sys::{SysError, process};
use warm::Ready;

/// The file in which it is remembered how gVisor works here.
const PLATFORM: &str = "gvisor-platform";
const TRYING: &str = "finding out which platform of gVisor works on this host";

/// A process of the guest is a few threads and stubs on the host, and the sentry has some of its own.
/// The guest's own limit is what is meant to be met, so the host's leaves room beyond it.
const COUNTING: Counting = Counting::Guest { tasks_per_process: 4, tasks_own: 128 };

/// runsc, and once that is found out, how it works here.
#[derive(Debug)]
pub(crate) struct Gvisor {
    runsc: Result<Runsc, String>,
    /// The one that is to be used, if an operator has named one.
    asked: Option<Platform>,
    platform: OnceLock<Result<Platform, String>>,
    /// What it was too slow for, so far.
    slow: Mutex<Option<String>>,
    /// Guests that were started ahead.
    ready: Mutex<Vec<Ready>>,
    /// The id that such a guest is given next; `None`: it is to be read what it was.
    next_id: Mutex<Option<u32>>,
}

impl Gvisor {
    /// Unavailable until [`Runtime::find_out`] has returned.
    pub(crate) fn new(host: &Host, program: Option<&Path>, asked: Option<Platform>) -> Self {
        let found = Runsc::detect(program, &host.paths.run, &host.paths.shim);
        Self {
            runsc: found.map_err(|error| chain(&error)),
            asked,
            platform: OnceLock::new(),
            slow: Mutex::default(),
            ready: Mutex::default(),
            next_id: Mutex::default(),
        }
    }

    /// The program, or why whatever needs it is refused.
    fn runsc(&self) -> Result<&Runsc, DriverError> {
        self.runsc.as_ref().map_err(|why| DriverError::Refused(format!("gvisor: {why}")))
    }

    fn platform(&self) -> Result<Platform, String> {
        self.platform.get().cloned().unwrap_or_else(|| Err(self.trying()))
    }

    fn ready(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.ready.lock().expect("nobody panics while holding those that are ready")
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

impl Runtime for Gvisor {
    fn isolation(&self) -> Isolation {
        Isolation::Gvisor
    }

    fn version(&self) -> Result<String, String> {
        let version = &self.runsc.as_ref().map_err(Clone::clone)?.version;
        Ok(format!("runsc {version}, {}", self.platform()?.as_str()))
    }

    fn missing(&self) -> Option<&str> {
        self.runsc.as_ref().err().map(String::as_str)
    }

    fn not_yet(&self) -> Option<String> {
        let is_trying = self.runsc.is_ok() && self.platform.get().is_none();
        is_trying.then(|| self.trying())
    }

    fn recall(&self, host: &Host) -> bool {
        let Ok(runsc) = &self.runsc else { return true };
        let remembered = runsc.remembered(self.asked, &host.paths.state.join(PLATFORM));
        remembered.is_some_and(|found| self.platform.set(Ok(found)).is_ok())
    }

    /// Which platform works, each given that long. Where nothing ran in that time, a busy host is as good a reason as a
    /// platform that hangs.
    fn find_out(&self, host: &Host, within: Duration) -> bool {
        let Ok(runsc) = &self.runsc else { return true };
        let found = match runsc.choose(self.asked, &host.paths.run, &host.ids, within) {
            Ok(found) => {
                // What is not sure is found out again by the next daemon.
                if found.is_sure {
                    runsc.remember(self.asked, found.platform, &host.paths.state.join(PLATFORM));
                }
                Ok(found.platform)
            }
            Err(unfit) if unfit.is_slow => {
                *self.slow() = Some(unfit.why);
                return false;
            }
            Err(unfit) => {
                let why = unfit.why;
                Err(format!("runsc {} works with no platform here: {why}", runsc.version))
            }
        };
        // Whoever was first has found out the same.
        let _ = self.platform.set(found);
        true
    }

    fn is_dear(&self) -> bool {
        true
    }

    fn counting(&self) -> Counting {
        COUNTING
    }

    fn lay_out(&self, place: &Place) -> Result<(), SysError> {
        place.tmp.as_deref().map_or(Ok(()), runsc::occupy)
    }

    fn prepare(&self, start: &Start<'_>) -> Result<Prepared, DriverError> {
        let (host, order, runsc) = (start.host, start.order, self.runsc()?);
        let (run_dir, network) = (host.run_dir(order.iid), order.spec.network);
        let platform = self.platform().map_err(DriverError::Refused)?;
        let listens_to_all = checkpoint::may_listen_to_all(&runsc.version);
        if network == Network::Host && listens_to_all {
            return Err(open_to_orders(&runsc.version));
        }
        let cgroups = cgroups_of(runsc, &order.spec.limits)?;
        let flags = runsc.flags(&run_dir.join(runsc::STATE), platform, network, cgroups.is_some());
        let confinement = Confinement::Gvisor {
            stage: runsc.staged().map(Path::to_owned),
            binds: binds_of(runsc, start, &run_dir),
            whole_proc: runsc.whole_proc(),
            hidden: Some(host.workspaces.volumes.mounts()),
            cgroups,
            timer_slack_ns: host.timer_slack_ns,
            pid_file: run_dir.join(runsc::PID),
            user_log: run_dir.join(runsc::USER_LOG),
            console: run_dir.join(runsc::CONSOLE),
            // Later ones listen at a path that is ours alone, and a network more is work.
            shares_network: !listens_to_all,
        };
        Ok(Prepared {
            program: runsc.program.to_string_lossy().into_owned(),
            args: Runsc::args(flags, order, &run_dir, start.image),
            confinement,
            // gVisor's own processes are the ones to be started; its guest's user is in the bundle.
            role: Role::Maker,
            files: files_of(runsc, start),
        })
    }

    fn enter(&self, enter: Enter<'_>) -> Result<Entered, DriverError> {
        let Enter { host, iid, order, .. } = enter;
        let process = enter.stem.with_extension(FILES[1]);
        let pid_file = enter.stem.with_extension(FILES[2]);
        let is_tty = order.tty.is_some();
        let about = runsc::exec_process(order.command, &enter.env, enter.work_dir, is_tty);
        write_private(&process, &about)?;
        let (own, state) = (host.known_as(iid), host.run_dir(iid).join(runsc::STATE));
        let way = Way::Gvisor {
            program: self.runsc()?.program.to_string_lossy().into_owned(),
            args: runsc::exec_args(&state, &process, &pid_file, &own),
            kill_args: runsc::kill_args(&state, PID, &own),
            pid_file,
        };
        // runsc's own; the program's is in the file.
        Ok(Entered { way, env: [("PATH".to_owned(), SEARCH_PATH.to_owned())].into() })
    }

    /// gVisor's kernel hands on what it gets.
    fn is_first(&self, pid: u32) -> bool {
        runsc::is_kernel(pid)
    }

    fn is_kernel(&self, pid: u32) -> bool {
        runsc::is_kernel(pid)
    }

    fn kernel(&self) -> String {
        let platform = self.platform().map_or("", |platform| platform.as_str());
        format!("gVisor {platform}")
    }

    fn own_cpu_usec(&self, group: &Group) -> u64 {
        let own = group.pids().into_iter().filter(|pid| runsc::is_own_process(*pid));
        own.filter_map(process::cpu_usec).sum()
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities { checkpoint: Some(self), warm: Some(self) }
    }
}

/// What runsc is shown for cgroups, if its guest is to count fewer cpus than there are.
fn cgroups_of(runsc: &Runsc, limits: &Limits) -> Result<Option<PathBuf>, DriverError> {
    let failed = |source| DriverError::Host { stage: "limit the cpus that are counted", source };
    counted::cpus(limits).map(|cpus| runsc.counted(cpus)).transpose().map_err(failed)
}

/// What of a sandbox runsc is to find at its own places.
fn binds_of(runsc: &Runsc, start: &Start<'_>, run_dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut binds = Vec::new();
    if let Some(Place { files, tmp, .. }) = start.place {
        binds.push((files.clone(), runsc.workspace()));
        binds.extend(tmp.clone().map(|tmp| (tmp, runsc.tmp())));
    }
    if start.order.spec.limits.memory_mb > 0 {
        binds.push((run_dir.join(runsc::MEMORY_INFO), "/proc/meminfo".into()));
    }
    binds
}

/// The bundle, and what the guest is told of its memory.
fn files_of(runsc: &Runsc, start: &Start<'_>) -> Vec<(&'static str, String)> {
    let order = start.order;
    let guest = Guest {
        hostname: order.name.as_str(),
        command: &order.spec.resolved_command(),
        env: start.env,
        host_uid: order.host_uid,
        host_root: start.host.ids.root_of(order.host_uid),
        tty: order.spec.tty,
        network: order.spec.network,
        limits: &order.spec.limits,
        waits: start.place.is_none(),
        has_tmp: start.has_tmp,
    };
    let memory = runsc::memory_info(&order.spec.limits);
    let bundle = (runsc::CONFIG, runsc.bundle(&guest).to_string());
    [bundle].into_iter().chain(memory.map(|text| (runsc::MEMORY_INFO, text))).collect()
}

fn open_to_orders(version: &str) -> DriverError {
    DriverError::Refused(format!(
        "runsc {version} may listen where everybody in the host's network can give it orders: `network: none`, \
         or install the one of bookworm-backports"
    ))
}
