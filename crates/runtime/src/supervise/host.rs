//! What the drivers of one daemon share: where things are, and the cgroups.
//!
//! ```text
//!   RUN/i/IID/   launch.json  record.json  lock  sock      boot-scoped: gone after a reboot, like what it is about
//!   STATE/instances/IID.json                  the exit, durable
//!   STATE/console/UID/                        the spool
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use crate::gvisor::checkpoint;
use crate::storage::fsops;
use crate::storage::workspace::{Wanted, Workspaces};
use crate::supervise::ledger;
use crate::supervise::measure::Measures;
use crate::supervise::spawner::ForkServer;
use crate::{DriverError, Order, Space};
use sodium_model::{IdRange, Iid, Isolation, Limits, Record, Span};
use sodium_shim::launch::{Confinement, FILE, Launch, SOCKET};
use sodium_sys::cgroup;
use sodium_sys::{self as sys, SysError, clock};

/// The name of a record in the run directory of an instance.
const RECORD: &str = "record.json";
/// Where it is noted, in the run directory, where the groups of its instances are.
const CGROUPS: &str = "cgroups.json";

/// A copy of a checkpoint that is nobody's after so long will be nobody's.
const STRAY_SECONDS: u64 = 3_600;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Paths {
    pub run: PathBuf,
    pub state: PathBuf,
    pub shim: PathBuf,
}

/// What the drivers of this daemon share.
#[derive(Debug)]
pub struct Host {
    pub paths: Paths,
    pub cgroups: cgroup::Root,
    pub workspaces: Workspaces,
    /// Whose ids on the host are ours.
    pub ids: IdRange,
    /// By how much timers of what runs under gVisor may be late, in nanoseconds. 0: as the host has it.
    pub timer_slack_ns: u64,
    console_bytes: AtomicU64,
    /// Highest so far: shims refuse an older daemon.
    pub epoch: u64,
    /// Instances for which this daemon has ordered a shim, and when, since boot.
    ordered: Mutex<HashMap<Iid, u64>>,
    pub(crate) forks: ForkServer,
    pub(crate) measures: Measures,
    families: Mutex<HashMap<Iid, Arc<cgroup::Family>>>,
}

/// The group that an instance's workload is in.
#[derive(Debug)]
pub(crate) struct WorkloadGroup(Arc<cgroup::Family>);

impl Deref for WorkloadGroup {
    type Target = cgroup::Group;

    fn deref(&self) -> &cgroup::Group {
        &self.0.workload
    }
}

impl Host {
    /// Makes the directories and finds the cgroups.
    pub fn open(
        paths: Paths,
        workspaces: Workspaces,
        console_bytes: u64,
        epoch: u64,
    ) -> Result<Self, SysError> {
        for dir in [paths.run.join("i"), paths.state.join("instances"), paths.state.join("console")]
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| SysError::io("mkdir", &dir, source))?;
        }
        let mut cgroups = cgroups_of(&paths.run);
        cgroups.remember(&paths.run.join(CGROUPS))?;
        let forks = ForkServer::new(&paths.shim, &paths.run.join("shims.log"));
        let ordered = Mutex::default();
        let console_bytes = AtomicU64::new(console_bytes);
        Ok(Self {
            paths,
            cgroups,
            workspaces,
            ids: IdRange::default(),
            timer_slack_ns: 0,
            console_bytes,
            epoch,
            ordered,
            forks,
            measures: Measures::default(),
            families: Mutex::default(),
        })
    }

    /// The same with another range of ids.
    pub fn with_ids(self, ids: IdRange) -> Self {
        Self { ids, ..self }
    }

    /// The same with timers that may be late.
    pub fn with_timer_slack(self, slack: Span) -> Self {
        Self { timer_slack_ns: slack.0.saturating_mul(1_000_000), ..self }
    }

    /// How much of its console each sandbox keeps.
    pub fn console_bytes(&self) -> u64 {
        self.console_bytes.load(Ordering::Relaxed)
    }

    /// How a limit on the disk is divided: what the workspace and /tmp may take, and what the console.
    pub(crate) fn shares(&self, limits: &Limits) -> (Option<u64>, u64) {
        ledger::shares(limits, self.console_bytes())
    }

    /// The workspace that a start needs.
    pub(crate) fn wanted_place<'o>(&self, order: &Order<'o>) -> Wanted<'o> {
        Wanted {
            uid: order.uid,
            host_uid: order.host_uid,
            bytes: self.shares(&order.spec.limits).0,
            ephemeral: order.spec.ephemeral,
            image_files: order.image_files,
            files: &order.spec.files,
        }
    }

    /// Whether sandboxes with these limits have volumes.
    pub(crate) fn has_volumes(&self, limits: &Limits) -> bool {
        limits.disk_mb > 0 && self.workspaces.volumes.kind().is_ok()
    }

    /// Instances that start from now on keep so much.
    pub fn keep_console_bytes(&self, bytes: u64) {
        self.console_bytes.store(bytes, Ordering::Relaxed);
    }

    /// What a sandbox holds of its disk, and may hold, its console included.
    pub fn disk(&self, uid: Uuid, owner: u32) -> Option<Space> {
        let volume = self.workspaces.volumes.find(uid)?;
        let console = fsops::allocated_bytes(&self.console(uid));
        let space = volume.space(owner)?;
        Some(Space { total_bytes: space.total_bytes + console, ..space })
    }

    /// Where a sandbox's console is.
    pub fn console(&self, uid: Uuid) -> PathBuf {
        console_path(&self.paths.state, uid)
    }

    /// Users of these of whom anything runs or lies in memory, or of whose guest's root.
    pub fn ids_in_use(&self, users: &Range<u32>) -> BTreeSet<u32> {
        let Some(last) = users.end.checked_sub(1) else { return BTreeSet::new() };
        let roots = self.ids.root_of(users.start)..self.ids.root_of(last).saturating_add(1);
        let found = sys::ids::in_use(&[users.clone(), roots]).into_iter();
        found
            .filter_map(|id| if users.contains(&id) { Some(id) } else { self.ids.user_of(id) })
            .collect()
    }

    /// Instances of which anything is on this host.
    pub fn residues(&self) -> Vec<Iid> {
        let dirs = fs::read_dir(self.paths.run.join("i")).into_iter().flatten().flatten();
        let names = dirs.filter_map(|entry| entry.file_name().into_string().ok());
        let names =
            names.chain(self.cgroups.names()).map(|name| name.trim_start_matches('.').to_owned());
        let mut iids: Vec<Iid> = names.filter_map(|name| Iid::parse(&name)).collect();
        iids.sort_unstable();
        iids.dedup();
        // Those that wait are nobody's; those that waited go with whose they are.
        let taken: Vec<Iid> = iids
            .iter()
            .map(|iid| (iid, self.known_as(iid)))
            .filter(|(iid, own)| *iid != own)
            .map(|(_, own)| own)
            .collect();
        let ordered = self.ordered();
        iids.retain(|iid| !iid.is_waiting() || !taken.contains(iid) && !ordered.contains_key(iid));
        iids
    }

    /// What an instance was started with. `None`: there is no order of it.
    pub(crate) fn launch(&self, iid: &Iid) -> Option<Launch> {
        serde_json::from_slice(&fs::read(self.run_dir(iid).join(FILE)).ok()?).ok()
    }

    /// What confines an instance, as its order says.
    pub fn isolation_of(&self, iid: &Iid) -> Option<Isolation> {
        let launch = self.launch(iid)?;
        Some(match launch.confinement {
            Confinement::Bubblewrap { .. } => Isolation::Bubblewrap,
            Confinement::Gvisor { .. } => Isolation::Gvisor,
            Confinement::Itself { .. } => Isolation::Process,
        })
    }

    /// Notes beside what runs what it is, for a daemon that lost its store.
    pub fn note(&self, record: &Record) -> Result<(), SysError> {
        let dir = self.run_dir(&record.instance.iid);
        let (half, path) = (dir.join(".record.new"), dir.join(RECORD));
        let json = serde_json::to_vec(record).expect("a record has string keys");
        let written = fs::write(&half, json).and_then(|()| fs::rename(&half, &path));
        written.map_err(|source| SysError::io("write", &path, source))
    }

    /// Removes the checkpoints of a sandbox but for these.
    pub fn sweep_checkpoints(&self, uid: Uuid, kept: &[&str]) -> Result<(), SysError> {
        checkpoint::sweep(&checkpoint::dir_of(&self.paths.state, uid), kept)
    }

    /// Removes the checkpoints of what no sandbox is: copies of which nothing came, because whoever asked for them went
    /// away. Those that were begun a moment ago may still become something.
    pub fn sweep_stray_checkpoints(&self, is_known: impl Fn(Uuid) -> bool) -> Result<(), SysError> {
        let dirs =
            fs::read_dir(self.paths.state.join("checkpoints")).into_iter().flatten().flatten();
        for entry in dirs {
            let uid = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok());
            let made = uid.and_then(|uid| uid.get_timestamp()).map(|stamp| stamp.to_unix().0);
            let (Some(uid), Some(made)) = (uid, made) else { continue };
            if !is_known(uid) && made.saturating_add(STRAY_SECONDS) < clock::wall_ms() / 1000 {
                fsops::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Gives another sandbox a checkpoint of this one, and its workspace with it.
    pub fn copy_checkpoint(&self, from: Uuid, to: Uuid, dir: &str) -> Result<(), DriverError> {
        let of = |uid| checkpoint::dir_of(&self.paths.state, uid);
        checkpoint::copy(&of(from).join(dir), &of(to), dir)
    }

    /// Removes everything a sandbox ever had here.
    pub fn forget(&self, uid: Uuid) -> Result<(), SysError> {
        self.sweep_checkpoints(uid, &[])?;
        let _ = fs::remove_dir(checkpoint::dir_of(&self.paths.state, uid));
        let dir = self.console(uid);
        match fs::remove_dir_all(&dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(SysError::io("remove", &dir, source)),
        }
    }

    /// What the host calls it: the name it was started under, if that was before it was anybody's.
    pub(crate) fn known_as(&self, iid: &Iid) -> Iid {
        let link = fs::read_link(self.run_dir(iid)).ok();
        link.and_then(|target| Iid::parse(target.to_str()?)).unwrap_or_else(|| iid.clone())
    }

    /// Where the groups of an instance are does not change once they are made, and those of thousands are asked for
    /// again and again.
    pub(crate) fn family(&self, iid: &Iid) -> Arc<cgroup::Family> {
        let known = || self.families.lock().expect("nobody panics while holding the families");
        if let Some(family) = known().get(iid) {
            return Arc::clone(family);
        }
        let family = Arc::new(self.cgroups.family(self.known_as(iid).as_str()));
        if family.exists() {
            known().insert(iid.clone(), Arc::clone(&family));
        }
        family
    }

    /// Those of an instance that is to be made: nobody is asked whether they are there.
    pub(crate) fn new_family(&self, iid: &Iid) -> Arc<cgroup::Family> {
        Arc::new(self.cgroups.new_family(iid.as_str()))
    }

    /// Makes them. Whose they are already, they stay.
    pub(crate) fn make_groups(
        &self,
        iid: &Iid,
        family: &Arc<cgroup::Family>,
    ) -> Result<(), SysError> {
        family.create()?;
        let mut families = self.families.lock().expect("nobody panics while holding the families");
        families.insert(iid.clone(), Arc::clone(family));
        Ok(())
    }

    /// There is nothing of an instance any more.
    pub(crate) fn forget_groups(&self, iid: &Iid) {
        self.families.lock().expect("nobody panics while holding the families").remove(iid);
    }

    /// The group of the workload.
    pub(crate) fn group(&self, iid: &Iid) -> WorkloadGroup {
        WorkloadGroup(self.family(iid))
    }

    pub(crate) fn run_dir(&self, iid: &Iid) -> PathBuf {
        self.paths.run.join("i").join(iid.as_str())
    }

    /// What a run directory is called until it is whole.
    pub(crate) fn unfinished(&self, iid: &Iid) -> PathBuf {
        self.paths.run.join("i").join(format!(".{iid}"))
    }

    pub(crate) fn exit_path(&self, iid: &Iid) -> PathBuf {
        self.paths.state.join("instances").join(format!("{iid}.json"))
    }

    pub(crate) fn socket(&self, iid: &Iid) -> PathBuf {
        self.run_dir(iid).join(SOCKET)
    }

    pub(crate) fn ordered(&self) -> MutexGuard<'_, HashMap<Iid, u64>> {
        self.ordered.lock().expect("nobody panics while holding the map")
    }
}

/// What is noted beside all that runs of the daemon with this run directory.
pub fn records(run: &Path) -> Vec<Record> {
    let dirs = fs::read_dir(run.join("i")).into_iter().flatten().flatten();
    let texts = dirs.filter_map(|entry| fs::read(entry.path().join(RECORD)).ok());
    let records = texts.filter_map(|text| serde_json::from_slice::<Record>(&text).ok());
    // One that was started ahead is found by the name it was given then, too.
    records
        .map(|record| (record.instance.iid.clone(), record))
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .collect()
}

/// The cgroups of the daemon with this run directory.
pub fn cgroups_of(run: &Path) -> cgroup::Root {
    cgroup::Root::detect(&cgroup_name(run))
}

/// Where the console of a sandbox is, below the state directory.
pub fn console_path(state: &Path, uid: Uuid) -> PathBuf {
    state.join("console").join(uid.to_string())
}

/// One subtree per run directory, so that two daemons on one machine do not meet.
fn cgroup_name(run: &Path) -> String {
    let hash =
        run.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    format!("sodiumd-{hash:08x}")
}
