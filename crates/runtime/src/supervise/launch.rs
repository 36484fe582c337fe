//! From an order to a shim: where the files are, what the shim is told, the run directory, and the cgroup with
//! its limits.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{SEARCH_PATH, Supervisor, convert, ledger, runtime_env};
use crate::process::View;
use crate::rootfs::HOME;
use crate::runtime::{Prepared, Role, Start};
use crate::storage::workspace::Place;
use crate::{DriverError, Order};
use sodium_model::{Iid, LimitStatus, SandboxName, Spec};
use sodium_shim::launch::{FILE, HELPERS, LOCK, Launch};
use sodium_sys::cgroup::Family;
use sodium_sys::lock::{self, Lock};
use sodium_sys::{SysError, clock};

/// What a shim is told, and what else it is to find in the run directory.
#[derive(Debug)]
pub(crate) struct Laid {
    pub launch: Launch,
    files: Vec<(&'static str, String)>,
}

impl Supervisor {
    /// Everything the shim is told. Pure but for the search for a program. Without a workspace, it is of
    /// something that waits for whom it will be.
    pub(crate) fn lay(
        &self,
        order: &Order<'_>,
        place: Option<&Place>,
        image: Option<&Path>,
        family: &Family,
    ) -> Result<Laid, DriverError> {
        let (host, spec) = (&self.host, order.spec);
        let files = place.map_or_else(|| Path::new(HOME), |place| &place.files);
        let tmp = place.and_then(|place| place.tmp.as_deref());
        let has_tmp = place.map_or_else(|| host.has_volumes(&spec.limits), |_| tmp.is_some());
        let view = self.runtime.view(host, files, tmp);
        let env = environment(order.name, spec, &view);
        let start = Start { host, order, place, has_tmp, image, env: &env };
        let Prepared { program, args, confinement, role, files } = self.runtime.prepare(&start)?;
        let is_workload = role == Role::Workload;
        // A runtime is a process outside, and is told nothing of a tenant's there.
        let path = || vec![("PATH".to_owned(), SEARCH_PATH.to_owned())];
        let takes_user = sodium_sys::is_root() && role != Role::Maker;
        let open_files = ledger::open_files(&spec.limits).map(|(value, _)| value);
        let launch = Launch {
            iid: order.iid.to_string(),
            name: order.name.to_string(),
            uid: order.uid.to_string(),
            generation: order.generation,
            epoch: order.epoch,
            program,
            args,
            env: if is_workload { env.into_iter().collect() } else { path() },
            work_dir: if is_workload { view.home } else { "/".into() },
            user: takes_user.then_some((order.host_uid, order.host_uid)),
            group: family.workload.clone(),
            helpers: family.helpers.clone(),
            open_files_max: open_files.filter(|_| role != Role::Maker),
            tty: spec.tty.then_some((80, 24)),
            confinement,
            warm: place.is_none(),
            spool_dir: host.console(order.uid),
            spool_bytes_max: host.shares(&spec.limits).1,
            timeout_ms: (spec.limits.timeout_seconds > 0)
                .then_some(spec.limits.timeout_seconds * 1000),
            output_bytes_per_second: (spec.limits.output > 0).then_some(spec.limits.output),
            stop_signal: convert::signal_number(&spec.stop.signal),
            stop_grace_ms: spec.stop.grace.0,
            exit_path: host.exit_path(order.iid),
        };
        Ok(Laid { launch, files })
    }

    /// The run directory beside a group that was just made. One that is there already is not ours, and neither is
    /// anything below its name: then the group goes, too.
    pub(crate) fn own_run_dir(
        &self,
        order: &Order<'_>,
        laid: &Laid,
        family: &Family,
    ) -> Result<Lock, DriverError> {
        let made = self.make_run_dir(order.iid, laid);
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
    fn make_run_dir(&self, iid: &Iid, laid: &Laid) -> Result<Lock, SysError> {
        let (dir, unfinished) = (self.host.run_dir(iid), self.host.unfinished(iid));
        let failed = |source| SysError::io("make", &dir, source);
        let json = serde_json::to_string(&laid.launch).expect("a launch has string keys");
        let files = laid.files.iter().map(|(name, text)| (*name, text.as_str()));
        fs::create_dir(&unfinished).map_err(failed)?;
        for (name, text) in [(FILE, json.as_str())].into_iter().chain(files) {
            fs::write(unfinished.join(name), text).map_err(failed)?;
        }
        if let Some(helpers) = &laid.launch.helpers.unified {
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
    pub(crate) fn order_shim(&self, iid: &Iid, held: Lock) -> Result<UnixStream, DriverError> {
        let dir = self.host.run_dir(iid);
        let ordered = self.host.forks.order(&dir, lock::hand_over(held).as_fd());
        let program = self.host.paths.shim.clone();
        let control = ordered.map_err(|source| DriverError::Spawn { program, source })?;
        self.host.ordered().insert(iid.clone(), clock::boot_ms());
        Ok(control)
    }

    pub(crate) fn prepare(
        &self,
        order: &Order<'_>,
    ) -> Result<(Vec<LimitStatus>, Lock), DriverError> {
        let host = |stage| move |source| DriverError::Host { stage, source };
        let image = self.restored(order)?;
        let place = self.workspace(order)?;
        self.runtime.lay_out(&place).map_err(host("prepare /tmp"))?;
        let family = self.host.new_family(order.iid);
        let laid = self.lay(order, Some(&place), image.as_deref(), &family)?;
        let io = order.spec.limits.io > 0;
        let files = Some(place.files.as_path()).filter(|_| io);
        let wanted = self.wanted(&order.spec.limits, order.host_uid, files);
        let made = self.host.make_groups(order.iid, &family);
        made.map_err(|source| not_made("make cgroup", order.iid, source))?;
        let applied = family.apply(&wanted).map_err(host("set limits"))?;
        let limits = self.statuses(&order.spec.limits, &applied, &place.kept);
        ledger::check_strict(order.spec, &limits)?;
        Ok((limits, self.own_run_dir(order, &laid, &family)?))
    }

    /// The memory that it is to go on from, if it is.
    fn restored(&self, order: &Order<'_>) -> Result<Option<PathBuf>, DriverError> {
        match self.runtime.capabilities().checkpoint {
            Some(checkpoint) => checkpoint.restore(&self.host, order),
            None if order.restore.is_some() => Err(self.has_no_checkpoints()),
            None => Ok(None),
        }
    }

    /// The sandbox's own files, with those that are to be in there.
    pub(crate) fn workspace(&self, order: &Order<'_>) -> Result<Place, DriverError> {
        let spaces = &self.host.workspaces;
        let prepare = || {
            if let Some(owner) = order.take_back.filter(|_| !order.spec.ephemeral) {
                spaces.take_back(order.uid, order.host_uid, order.name, owner)?;
            }
            spaces.prepare(&self.host.wanted_place(order))
        };
        prepare().map_err(|source| DriverError::Host { stage: "prepare workspace", source })
    }
}

/// Why something new was not made. If it is there, it is somebody else's.
pub(crate) fn not_made(stage: &'static str, iid: &Iid, source: SysError) -> DriverError {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    let is_there =
        matches!(source.source.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory);
    if is_there {
        DriverError::Exists { iid: iid.to_string() }
    } else {
        DriverError::Host { stage, source }
    }
}

/// Built from empty: nothing of the daemon's own environment is in it. What the spec says goes before what we do.
pub(crate) fn environment(
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
    env.extend(runtime_env::of(&spec.limits));
    env.extend(spec.env.clone());
    env
}
