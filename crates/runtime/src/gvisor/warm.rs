//! Guests that are started ahead and wait for somebody: gVisor runs in them already, and a small program
//! of ours that becomes what they are claimed for. They are frozen meanwhile.
//!
//! ```text
//!   RUN/i/1a2b3c4d5e6f7890-0/          one that waits, or waited
//!   RUN/i/IID -> 1a2b3c4d5e6f7890-0    whose it is now
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Gvisor, checkpoint, counted, runsc};
use crate::process::View;
use crate::rootfs::{HOME, INIT, INSIDE_ID, TMP};
use crate::runtime::WarmPool;
use crate::storage::workspace::Place;
use crate::supervise::host::Host;
use crate::supervise::launch::{environment, not_made};
use crate::supervise::{Supervisor, ledger};
use crate::{Driver, DriverError, Order, Started};
use sodium_model::{Iid, Isolation, Limits, Network, SandboxName, Spec};
use sodium_shim::claim::{self, Attached, Claim};
use sodium_shim::init::InitOrder;
use sodium_shim::launch::Launch;
use sodium_shim::protocol::{Phase, Request};
use sodium_sys::{SysError, clock, path};

/// Which host uid the next one is given; in the run directory, as long as which any of them runs.
const NEXT_ID: &str = "next-waiting-uid";
/// How long one may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// One that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) iid: Iid,
    image: String,
    /// What it counts inside, which cannot be changed any more.
    memory_mb: u64,
    cpus: Option<u64>,
    host_uid: u32,
    /// Whether a directory can be its /tmp.
    has_tmp: bool,
}

impl WarmPool for Gvisor {
    fn start_ahead(
        &self,
        by: &Supervisor,
        image: &str,
        limits: &Limits,
    ) -> Result<(), DriverError> {
        let version = &self.runsc()?.version;
        if checkpoint::is_old(version) {
            return Err(DriverError::Refused(format!("guests of runsc {version} cannot wait")));
        }
        let (_, drawn) = Uuid::new_v4().as_u64_pair();
        let iid = Iid::waiting(drawn);
        let host_uid = self.free_id(&by.host)?;
        let spec = waiting_spec(image, limits)?;
        let name = SandboxName::try_from("waiting").expect("it is a DNS label");
        let nothing = std::collections::BTreeMap::new();
        let order = Order {
            iid: &iid,
            name: &name,
            uid: Uuid::nil(),
            generation: 0,
            epoch: by.host.epoch,
            spec: &spec,
            host_uid,
            image_files: &nothing,
            take_back: None,
            restore: None,
        };
        // Before anything of it is there to be taken for an earlier daemon's.
        by.host.ordered().insert(iid.clone(), clock::boot_ms());
        let started = prepare_ahead(by, &order).and_then(|()| wait_ready(by, &iid));
        if let Err(error) = started {
            if matches!(error, DriverError::Exists { .. }) {
                // Of whoever has that name, nothing is to be ended.
                by.host.ordered().remove(&iid);
            } else {
                by.end_waiting(&iid);
            }
            return Err(error);
        }
        let (memory_mb, cpus) = (limits.memory_mb, counted::cpus(limits));
        let (image, has_tmp) = (image.to_owned(), by.host.has_volumes(limits));
        self.ready().push(Ready { iid, image, memory_mb, cpus, host_uid, has_tmp });
        Ok(())
    }

    fn count(&self, image: &str) -> usize {
        self.ready().iter().filter(|ready| ready.image == image).count()
    }

    fn claim(&self, by: &Supervisor, order: &Order<'_>) -> Option<Started> {
        let spec = order.spec;
        if spec.tty || spec.network != Network::None || order.restore.is_some() {
            return None;
        }
        let fits = |ready: &Ready| {
            Some(&ready.image) == spec.image.as_ref()
                && ready.memory_mb == spec.limits.memory_mb
                && ready.cpus == counted::cpus(&spec.limits)
                && (spec.ephemeral || ready.has_tmp == by.host.has_volumes(&spec.limits))
        };
        loop {
            let ready = {
                let mut waiting = self.ready();
                let index = waiting.iter().position(fits)?;
                waiting.swap_remove(index)
            };
            match claim_one(by, order, &ready) {
                Ok(started) => return Some(started),
                // Whose name that is already keeps it; and one that is started now is told so.
                Err(DriverError::Exists { .. }) => {
                    by.end_waiting(&ready.iid);
                    return None;
                }
                // It has ended meanwhile, or something of it does not work: the next one, or one that is
                // started now.
                Err(_) => {
                    let _ = fs::remove_file(by.host.run_dir(order.iid));
                    by.end_waiting(&ready.iid);
                    // Its end, if it was claimed already, is not that of whoever is started now.
                    let _ = fs::remove_file(by.host.exit_path(order.iid));
                }
            }
        }
    }

    fn take_all(&self) -> Vec<Iid> {
        std::mem::take(&mut *self.ready()).into_iter().map(|ready| ready.iid).collect()
    }
}

impl Gvisor {
    /// An id that no such guest has, of this daemon or of one before it: all others come first.
    fn free_id(&self, host: &Host) -> Result<u32, DriverError> {
        let ids = host.ids.waiting();
        let in_use = host.ids_in_use(&ids);
        let noted = host.paths.run.join(NEXT_ID);
        let mut next = self.next_id.lock().expect("nobody panics while drawing a number");
        let first = next.or_else(|| fs::read_to_string(&noted).ok()?.trim().parse().ok());
        let first = first.filter(|id| ids.contains(id)).unwrap_or(ids.start);
        let free = (first..ids.end).chain(ids.start..first).find(|id| !in_use.contains(id));
        let free = free.ok_or_else(|| {
            DriverError::Refused("all host uids for waiting guests are in use".to_owned())
        })?;
        *next = Some(free + 1);
        let written = path::write_durably(&noted, (free + 1).to_string().as_bytes());
        written.map_err(|source| DriverError::Host { stage: "note host uid", source })?;
        Ok(free)
    }
}

fn prepare_ahead(by: &Supervisor, order: &Order<'_>) -> Result<(), DriverError> {
    let host = |stage| move |source| DriverError::Host { stage, source };
    let family = by.host.new_family(order.iid);
    let laid = by.lay(order, None, None, &family)?;
    let made = by.host.make_groups(order.iid, &family);
    made.map_err(|source| not_made("make cgroup", order.iid, source))?;
    family
        .apply(&by.wanted(&order.spec.limits, order.host_uid, None))
        .map_err(host("set limits"))?;
    let lock = by.own_run_dir(order, &laid, &family)?;
    // Nobody follows it before it is somebody's.
    by.order_shim(order.iid, lock).map(drop)
}

fn wait_ready(by: &Supervisor, iid: &Iid) -> Result<(), DriverError> {
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        match by.client(iid) {
            Ok((_, state)) if state.phase == Phase::Running => {
                let group = by.host.group(iid);
                let failed = |source| DriverError::Host { stage: "freeze", source };
                return group.freeze(true).map_err(failed);
            }
            Ok((_, state)) if state.phase != Phase::Launching => break,
            Ok(_) | Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    Err(DriverError::Refused(format!("{iid} did not become ready")))
}

fn claim_one(by: &Supervisor, order: &Order<'_>, ready: &Ready) -> Result<Started, DriverError> {
    let host = |stage| move |source| DriverError::Host { stage, source };
    let place = by.workspace(order)?;
    if place.tmp.is_some() != ready.has_tmp {
        return Err(DriverError::Refused("its /tmp is another one".to_owned()));
    }
    let family = by.host.family(&ready.iid);
    let limits = &order.spec.limits;
    let applied = family
        .apply(&by.wanted(limits, order.host_uid, Some(&place.files)))
        .map_err(host("set limits"))?;
    let statuses = by.statuses(limits, &applied, &place.kept);
    ledger::check_strict(order.spec, &statuses)?;
    let launch = by.lay(order, Some(&place), None, &family)?.launch;
    let ids = runsc::shifted_ids(&by.host.ids, order.host_uid, ready.host_uid);
    let claim = written(order, launch, &place, &ids);
    let dir = by.host.run_dir(&ready.iid);
    let json = serde_json::to_vec(&claim).expect("a claim has string keys");
    path::write_private(&dir.join(claim::FILE), &json).map_err(host("write claim"))?;
    let link = by.host.run_dir(order.iid);
    let linked = symlink(ready.iid.as_str(), &link);
    linked.map_err(|source| not_made("claim", order.iid, SysError::io("link", &link, source)))?;
    family.workload.freeze(false).map_err(host("thaw"))?;
    by.ask(&ready.iid, "claim", &Request::Claim)?;
    by.host.ordered().insert(order.iid.clone(), clock::boot_ms());
    Ok(Started { link: by.connect(order.iid), limits: statuses })
}

/// What one that waits is to become.
fn written(order: &Order<'_>, launch: Launch, place: &Place, ids: &[(u32, u32)]) -> Claim {
    let limits = &order.spec.limits;
    let some = |value: u64| (value > 0).then_some(value);
    let env = environment(order.name, order.spec, &View::inside()).into_iter().collect();
    let tree = |source: &Path, at: &str| Attached {
        source: source.to_owned(),
        at: at.into(),
        ids: ids.to_vec(),
    };
    let tmp = place.tmp.as_deref().map(|tmp| tree(tmp, TMP));
    Claim {
        launch,
        trees: [tree(&place.files, HOME)].into_iter().chain(tmp).collect(),
        order: InitOrder {
            args: order.spec.resolved_command(),
            env,
            work_dir: HOME.into(),
            hostname: order.name.to_string(),
            user: INSIDE_ID,
            open_files_max: some(limits.max_files),
            processes_max: some(limits.max_processes),
            secret: format!("{} ", Uuid::new_v4().simple()),
        },
    }
}

/// Nothing is wanted of it yet but that it is there, with this much memory and so many cpus.
fn waiting_spec(image: &str, limits: &Limits) -> Result<Spec, DriverError> {
    let written = json!({
        "image": image, "isolation": Isolation::Gvisor, "command": [INIT], "state": "running",
        "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
        "stop": {"signal": "SIGKILL", "grace": "0s"}, "tty": false, "network": Network::None,
        "limits": Limits { timeout_seconds: 0, max_files: 0, ..*limits }, "strict": false,
    });
    serde_json::from_value(written).map_err(|error| DriverError::Refused(error.to_string()))
}
