//! From an order to a shim: where the files are, what the shim is told, the run directory, and the cgroup with
//! its limits.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{Bundle, Gvisor, SEARCH_PATH, Shimmed, checkpoint, convert, hints, ledger};
use crate::bwrap::Bubblewrap;
use crate::process::View;
use crate::runsc::{self, Guest, Runsc};
use crate::shown::{HOME, MADE};
use crate::workspace::{Place, Wanted};
use crate::{DriverError, Order, process};
use sodium_model::{Iid, LimitStatus, Limits, Network, SandboxName, Spec};
use sodium_shim::launch::{Confinement, FILE, HELPERS, LOCK, Launch, Program};
use sodium_sys::cgroup::Family;
use sodium_sys::lock::{self, Lock};
use sodium_sys::{SysError, clock};

impl Shimmed {
    /// Everything the shim is told. Pure but for the search for a program. Without a workspace, it is of
    /// something that waits for whom it will be.
    pub(super) fn launch(
        &self,
        order: &Order<'_>,
        place: Option<&Place>,
        image: Option<&Path>,
        family: &Family,
    ) -> Result<Launch, DriverError> {
        let host = &self.host;
        let spec = order.spec;
        let (program, args, confinement) = self.way(order, place, image)?;
        let workspace = place.map(|place| place.files.as_path());
        let plain = matches!(self.bundle, Bundle::Process);
        let gvisor = matches!(self.bundle, Bundle::Gvisor(_));
        let tmp = place.and_then(|place| place.tmp.as_deref());
        let home = workspace.filter(|_| plain).map(|files| self.view(files, tmp).home);
        let work_dir = home.unwrap_or_else(|| "/".into());
        // gVisor's own processes are the ones to be started; its guest's user is in the bundle.
        let user = (sodium_sys::is_root() && !gvisor).then_some((order.host_uid, order.host_uid));
        // A runtime is a process outside, and is told nothing of a tenant's there.
        let env = if plain {
            self.environment(order, place).into_iter().collect()
        } else {
            vec![("PATH".to_owned(), SEARCH_PATH.to_owned())]
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
            group: family.workload.clone(),
            helpers: family.helpers.clone(),
            open_files_max,
            tty: spec.tty.then_some((80, 24)),
            confinement,
            warm: workspace.is_none(),
            spool_dir: host.console(order.uid),
            spool_bytes_max: self.shares(&spec.limits).1,
            timeout_ms: (spec.limits.timeout_seconds > 0)
                .then_some(spec.limits.timeout_seconds * 1000),
            output_bytes_per_second: (spec.limits.output > 0).then_some(spec.limits.output),
            stop_signal: convert::signal_number(&spec.stop.signal),
            stop_grace_ms: spec.stop.grace.0,
            exit_path: host.exit_path(order.iid),
        })
    }

    /// The program on the host, its arguments, and who confines what.
    fn way(
        &self,
        order: &Order<'_>,
        place: Option<&Place>,
        image: Option<&Path>,
    ) -> Result<(String, Vec<String>, Confinement), DriverError> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(match &self.bundle {
            Bundle::Bubblewrap(bwrap) => {
                let bwrap = bwrap.as_ref().map_err(|why| DriverError::Refused(why.clone()))?;
                let place = own_files(place)?;
                let is_staged = sodium_sys::is_root();
                let hidden = self.host.workspaces.volumes.mounts();
                let confinement = Confinement::Bubblewrap {
                    inherited: bwrap.inherited(),
                    options: bwrap.options(order, place, is_staged),
                    inside: Program {
                        args: order.spec.resolved_command(),
                        env: self.environment(order, Some(place)).into_iter().collect(),
                        shares_network: order.spec.network == Network::Host,
                    },
                    stage: is_staged.then(|| bwrap.stage(place, &hidden)),
                };
                (text(&bwrap.program), Bubblewrap::args(), confinement)
            }
            Bundle::Gvisor(gvisor) => {
                let (runsc, run_dir) = (gvisor.runsc()?, self.host.run_dir(order.iid));
                let platform = gvisor.platform().map_err(DriverError::Refused)?;
                let listens_to_all = checkpoint::may_listen_to_all(&runsc.version);
                if order.spec.network == Network::Host && listens_to_all {
                    return Err(open_to_orders(&runsc.version));
                }
                let cgroups = self.counted(runsc, &order.spec.limits)?;
                let (state, network) = (run_dir.join(runsc::STATE), order.spec.network);
                let flags = runsc.flags(&state, platform, network, cgroups.is_some());
                let confinement = Confinement::Gvisor {
                    stage: runsc.staged().map(Path::to_owned),
                    binds: binds_of(runsc, place, &run_dir, &order.spec.limits),
                    whole_proc: runsc.whole_proc(),
                    hidden: Some(self.host.workspaces.volumes.mounts()),
                    cgroups,
                    timer_slack_ns: self.host.timer_slack_ns,
                    pid_file: run_dir.join(runsc::PID),
                    user_log: run_dir.join(runsc::USER_LOG),
                    console: run_dir.join(runsc::CONSOLE),
                    // Later ones listen at a path that is ours alone, and a network more is work.
                    shares_network: !listens_to_all,
                };
                (text(&runsc.program), Runsc::args(flags, order, &run_dir, image), confinement)
            }
            Bundle::Process => {
                let (place, made) = (own_files(place)?, self.host.paths.run.join(MADE));
                let view = self.view(&place.files, place.tmp.as_deref());
                let confinement = Confinement::Itself {
                    read_only: process::read_only(&view.init),
                    writable: process::writable(view.writable(), sodium_sys::is_root()),
                    without_tcp: !sodium_sys::is_root() && order.spec.network == Network::None,
                    room: sodium_sys::is_root().then(|| process::room(order, place, &made)),
                };
                let program = process::program(order, SEARCH_PATH, &view.init);
                (program, order.spec.resolved_command(), confinement)
            }
        })
    }

    /// What runsc is shown for cgroups, if its guest is to count fewer cpus than there are.
    fn counted(&self, runsc: &Runsc, limits: &Limits) -> Result<Option<PathBuf>, DriverError> {
        let failed =
            |source| DriverError::Host { stage: "limit the cpus that are counted", source };
        runsc::cpus(limits).map(|cpus| runsc.counted(cpus)).transpose().map_err(failed)
    }

    /// What a sandbox that is started now sees of its own files.
    pub(super) fn view(&self, files: &Path, tmp: Option<&Path>) -> View {
        match self.bundle {
            Bundle::Process if !sodium_sys::is_root() => {
                View::on_host(files, tmp, &self.host.paths.run.join(MADE))
            }
            Bundle::Bubblewrap(_) | Bundle::Gvisor(_) | Bundle::Process => View::inside(),
        }
    }

    /// Of the workload, whatever confines it.
    fn environment(&self, order: &Order<'_>, place: Option<&Place>) -> BTreeMap<String, String> {
        let files = place.map_or_else(|| Path::new(HOME), |place| &place.files);
        let view = self.view(files, place.and_then(|place| place.tmp.as_deref()));
        environment(order.name, order.spec, &view)
    }

    /// What the runtime is to find in the run directory.
    fn bundle_files(
        &self,
        order: &Order<'_>,
        waits: bool,
        has_tmp: bool,
    ) -> Vec<(&'static str, String)> {
        let Bundle::Gvisor(Gvisor { runsc: Ok(runsc), .. }) = &self.bundle else {
            return Vec::new();
        };
        let guest = Guest {
            hostname: order.name.as_str(),
            command: &order.spec.resolved_command(),
            env: &self.environment(order, None),
            host_uid: order.host_uid,
            host_root: self.host.ids.root_of(order.host_uid),
            tty: order.spec.tty,
            network: order.spec.network,
            limits: &order.spec.limits,
            waits,
            has_tmp,
        };
        let memory = runsc::memory_info(&order.spec.limits);
        let bundle = (runsc::CONFIG, runsc.bundle(&guest).to_string());
        [bundle].into_iter().chain(memory.map(|text| (runsc::MEMORY_INFO, text))).collect()
    }

    /// The run directory beside a group that was just made. One that is there already is not ours, and neither is
    /// anything below its name: then the group goes, too.
    pub(super) fn own_run_dir(
        &self,
        order: &Order<'_>,
        launch: &Launch,
        family: &Family,
        has_tmp: bool,
    ) -> Result<Lock, DriverError> {
        let made = self.make_run_dir(order, launch, has_tmp);
        made.map_err(|source| {
            let error = not_made("make run directory", order.iid, source);
            if matches!(error, DriverError::Exists { .. }) {
                let _ = family.remove();
                self.host.forget_groups(order.iid);
            }
            error
        })
    }

    /// Made under a temporary name: a run directory that is there is whole, and its lock is held.
    fn make_run_dir(
        &self,
        order: &Order<'_>,
        launch: &Launch,
        has_tmp: bool,
    ) -> Result<Lock, SysError> {
        let (dir, unfinished) = (self.host.run_dir(order.iid), self.host.unfinished(order.iid));
        let failed = |source| SysError::io("make", &dir, source);
        let json = serde_json::to_string(launch).expect("a launch has string keys");
        let files =
            [(FILE, json)].into_iter().chain(self.bundle_files(order, launch.warm, has_tmp));
        fs::create_dir(&unfinished).map_err(failed)?;
        for (name, text) in files {
            fs::write(unfinished.join(name), text).map_err(failed)?;
        }
        if let Some(helpers) = &launch.helpers.unified {
            symlink(helpers, unfinished.join(HELPERS)).map_err(failed)?;
        }
        // Nobody looks there yet, so nobody can be in the way.
        let taken = lock::try_take(&unfinished.join(LOCK))?;
        let lock = taken.ok_or_else(|| failed(io::ErrorKind::WouldBlock.into()))?;
        // Over what is there already, but for an empty directory, nothing is renamed.
        fs::rename(&unfinished, &dir).map_err(|source| {
            let _ = fs::remove_dir_all(&unfinished);
            failed(source)
        })?;
        Ok(lock)
    }

    /// Orders a shim for the instance and hands it the lock: it holds it from its first moment.
    pub(super) fn order_shim(&self, iid: &Iid, held: Lock) -> Result<UnixStream, DriverError> {
        let dir = self.host.run_dir(iid);
        let ordered = self.host.forks.order(&dir, lock::hand_over(held).as_fd());
        let program = self.host.paths.shim.clone();
        let control = ordered.map_err(|source| DriverError::Spawn { program, source })?;
        self.host.ordered().insert(iid.clone(), clock::boot_ms());
        Ok(control)
    }

    pub(super) fn prepare(
        &self,
        order: &Order<'_>,
    ) -> Result<(Vec<LimitStatus>, Lock), DriverError> {
        let host = |stage| move |source| DriverError::Host { stage, source };
        let image = self.wake(order)?;
        let place = self.workspace(order)?;
        if let (Bundle::Gvisor(_), Some(tmp)) = (&self.bundle, &place.tmp) {
            runsc::occupy(tmp).map_err(host("prepare /tmp"))?;
        }
        let family = self.host.new_family(order.iid);
        let launch = self.launch(order, Some(&place), image.as_deref(), &family)?;
        let io = order.spec.limits.io > 0;
        let files = Some(place.files.as_path()).filter(|_| io);
        let wanted = self.wanted(&order.spec.limits, order.host_uid, files);
        let made = self.host.make_groups(order.iid, &family);
        made.map_err(|source| not_made("make cgroup", order.iid, source))?;
        let applied = family.apply(&wanted).map_err(host("set limits"))?;
        let limits = self.statuses(&order.spec.limits, &applied, &place.kept);
        ledger::check_strict(order.spec, &limits)?;
        Ok((limits, self.own_run_dir(order, &launch, &family, place.tmp.is_some())?))
    }

    /// The sandbox's own files, with those that are to be in there.
    pub(super) fn workspace(&self, order: &Order<'_>) -> Result<Place, DriverError> {
        let spaces = &self.host.workspaces;
        let prepare = || {
            if let Some(owner) = order.take_back.filter(|_| !order.spec.ephemeral) {
                spaces.take_back(order.uid, order.host_uid, order.name, owner)?;
            }
            spaces.prepare(&self.wanted_place(order))
        };
        prepare().map_err(|source| DriverError::Host { stage: "prepare workspace", source })
    }

    pub(super) fn wanted_place<'o>(&self, order: &Order<'o>) -> Wanted<'o> {
        Wanted {
            uid: order.uid,
            host_uid: order.host_uid,
            bytes: self.shares(&order.spec.limits).0,
            ephemeral: order.spec.ephemeral,
            image_files: order.image_files,
            files: &order.spec.files,
        }
    }

    /// How a limit on the disk is divided: what the workspace and /tmp may take, and what the console.
    pub(super) fn shares(&self, limits: &Limits) -> (Option<u64>, u64) {
        ledger::shares(limits, self.host.console_bytes())
    }
}

/// Why something new was not made. If it is there, it is somebody else's.
pub(super) fn not_made(stage: &'static str, iid: &Iid, source: SysError) -> DriverError {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    let is_there =
        matches!(source.source.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory);
    if is_there {
        DriverError::Exists { iid: iid.to_string() }
    } else {
        DriverError::Host { stage, source }
    }
}

/// What of a sandbox runsc is to find at its own places.
fn binds_of(
    runsc: &Runsc,
    place: Option<&Place>,
    run_dir: &Path,
    limits: &Limits,
) -> Vec<(PathBuf, PathBuf)> {
    let mut binds = Vec::new();
    if let Some(Place { files, tmp, .. }) = place {
        binds.push((files.clone(), runsc.workspace()));
        binds.extend(tmp.clone().map(|tmp| (tmp, runsc.tmp())));
    }
    if limits.memory_mb > 0 {
        binds.push((run_dir.join(runsc::MEMORY_INFO), "/proc/meminfo".into()));
    }
    binds
}

fn open_to_orders(version: &str) -> DriverError {
    DriverError::Refused(format!(
        "runsc {version} may listen where everybody in the host's network can give it orders: `network: none`, \
         or install the one of bookworm-backports"
    ))
}

/// Only gVisor's guests can wait for theirs.
fn own_files(place: Option<&Place>) -> Result<&Place, DriverError> {
    place.ok_or_else(|| DriverError::Refused("it has no workspace".to_owned()))
}

/// Built from empty: nothing of the daemon's own environment is in it. What the spec says goes before what we do.
pub(super) fn environment(
    name: &SandboxName,
    spec: &Spec,
    view: &View,
) -> BTreeMap<String, String> {
    let home = view.home.to_string_lossy();
    let own = [
        ("HOME", &*home),
        ("PWD", &*home),
        ("PATH", SEARCH_PATH),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("USER", "container"),
        ("SODIUM_SANDBOX", name.as_str()),
    ];
    let mut env: BTreeMap<String, String> =
        own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if let Some(tmp) = view.tmp.as_deref().filter(|tmp| *tmp != Path::new("/tmp")) {
        // The host's is not its own to write to.
        env.insert("TMPDIR".to_owned(), tmp.to_string_lossy().into_owned());
    }
    env.extend(hints::of(&spec.limits));
    env.extend(spec.env.clone());
    env
}
