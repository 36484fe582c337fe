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
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::begin::{environment, not_made};
use super::{Bundle, Shimmed, checkpoint, ledger, runsc};
use crate::shown::{HOME, INIT, INSIDE_ID, TMP};
use crate::{DriverError, Order, Started};
use sodium_model::{Iid, Isolation, Limits, Network, SandboxName, Spec};
use sodium_shim::claim::{self, Attached, Claim};
use sodium_shim::init::InitOrder;
use sodium_shim::protocol::{Phase, Request};
use sodium_sys::{SysError, clock, path};

/// Which host uid the next one is given; in the run directory, as long as which any of them runs.
const NEXT_ID: &str = "next-waiting-uid";
/// How long one may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// One that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) iid: Iid,
    image: String,
    /// What it counts inside, which cannot be changed any more.
    memory_mb: u64,
    cpus: Option<u64>,
    host_uid: u32,
    /// Whether a directory can be its /tmp.
    has_tmp: bool,
}

impl Shimmed {
    /// Starts one ahead.
    pub(super) fn start_ahead(&self, image: &str, limits: &Limits) -> Result<(), DriverError> {
        let Bundle::Gvisor(gvisor) = &self.bundle else {
            return Err(DriverError::Refused("only gVisor's guests can wait".to_owned()));
        };
        let version = &gvisor.runsc()?.version;
        if checkpoint::is_old(version) {
            return Err(DriverError::Refused(format!("guests of runsc {version} cannot wait")));
        }
        let (_, drawn) = Uuid::new_v4().as_u64_pair();
        let iid = Iid::waiting(drawn);
        let host_uid = self.free_id(&gvisor.next_id)?;
        let spec = waiting_spec(image, limits)?;
        let name = SandboxName::try_from("waiting").expect("it is a DNS label");
        let nothing = std::collections::BTreeMap::new();
        let order = Order {
            iid: &iid,
            name: &name,
            uid: Uuid::nil(),
            generation: 0,
            epoch: self.host.epoch,
            spec: &spec,
            host_uid,
            image_files: &nothing,
            take_back: None,
            restore: None,
        };
        // Before anything of it is there to be taken for an earlier daemon's.
        self.host.ordered().insert(iid.clone(), clock::boot_ms());
        let started = self.prepare_ahead(&order).and_then(|()| self.wait_ready(&iid));
        if let Err(error) = started {
            if matches!(error, DriverError::Exists { .. }) {
                // Of whoever has that name, nothing is to be ended.
                self.host.ordered().remove(&iid);
            } else {
                self.discard(&iid);
            }
            return Err(error);
        }
        let (memory_mb, cpus) = (limits.memory_mb, runsc::cpus(limits));
        let image = image.to_owned();
        let ready =
            Ready { iid, image, memory_mb, cpus, host_uid, has_tmp: self.has_volumes(limits) };
        gvisor.ready().push(ready);
        Ok(())
    }

    /// An id that no such guest has, of this daemon or of one before it: all others come first.
    fn free_id(&self, next: &Mutex<Option<u32>>) -> Result<u32, DriverError> {
        let ids = self.host.ids.waiting();
        let in_use = self.host.ids_in_use(&ids);
        let noted = self.host.paths.run.join(NEXT_ID);
        let mut next = next.lock().expect("nobody panics while drawing a number");
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

    fn prepare_ahead(&self, order: &Order<'_>) -> Result<(), DriverError> {
        let host = |stage| move |source| DriverError::Host { stage, source };
        let family = self.host.new_family(order.iid);
        let launch = self.launch(order, None, None, &family)?;
        let made = self.host.make_groups(order.iid, &family);
        made.map_err(|source| not_made("make cgroup", order.iid, source))?;
        family
            .apply(&self.wanted(&order.spec.limits, order.host_uid, None))
            .map_err(host("set limits"))?;
        let has_tmp = self.has_volumes(&order.spec.limits);
        let lock = self.own_run_dir(order, &launch, &family, has_tmp)?;
        // Nobody follows it before it is somebody's.
        self.order_shim(order.iid, lock).map(drop)
    }

    /// Whether sandboxes with these limits have volumes.
    fn has_volumes(&self, limits: &Limits) -> bool {
        limits.disk_mb > 0 && self.host.workspaces.volumes.kind().is_ok()
    }

    fn wait_ready(&self, iid: &Iid) -> Result<(), DriverError> {
        let deadline = Instant::now() + READY_WITHIN;
        while Instant::now() < deadline {
            match self.client(iid) {
                Ok((_, state)) if state.phase == Phase::Running => {
                    let group = self.host.group(iid);
                    let failed = |source| DriverError::Host { stage: "freeze", source };
                    return group.freeze(true).map_err(failed);
                }
                Ok((_, state)) if state.phase != Phase::Launching => break,
                Ok(_) | Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(DriverError::Refused(format!("{iid} did not become ready")))
    }

    /// How many wait for sandboxes of this image.
    pub(super) fn count_ready(&self, image: &str) -> usize {
        let Bundle::Gvisor(gvisor) = &self.bundle else { return 0 };
        gvisor.ready().iter().filter(|ready| ready.image == image).count()
    }

    /// Gives one that waits to this order, if there is one that can obey every word of it.
    pub(super) fn claim(&self, order: &Order<'_>) -> Option<Started> {
        let spec = order.spec;
        let Bundle::Gvisor(gvisor) = &self.bundle else { return None };
        if spec.tty || spec.network != Network::None || order.restore.is_some() {
            return None;
        }
        let fits = |ready: &Ready| {
            Some(&ready.image) == spec.image.as_ref()
                && ready.memory_mb == spec.limits.memory_mb
                && ready.cpus == runsc::cpus(&spec.limits)
                && (spec.ephemeral || ready.has_tmp == self.has_volumes(&spec.limits))
        };
        loop {
            let ready = {
                let mut waiting = gvisor.ready();
                let index = waiting.iter().position(fits)?;
                waiting.swap_remove(index)
            };
            match self.claim_one(order, &ready) {
                Ok(started) => return Some(started),
                // Whose name that is already keeps it; and one that is started now is told so.
                Err(DriverError::Exists { .. }) => {
                    self.discard(&ready.iid);
                    return None;
                }
                // It has ended meanwhile, or something of it does not work: the next one, or one that is
                // started now.
                Err(_) => {
                    let _ = fs::remove_file(self.host.run_dir(order.iid));
                    self.discard(&ready.iid);
                    // Its end, if it was claimed already, is not that of whoever is started now.
                    let _ = fs::remove_file(self.host.exit_path(order.iid));
                }
            }
        }
    }

    fn claim_one(&self, order: &Order<'_>, ready: &Ready) -> Result<Started, DriverError> {
        let host = |stage| move |source| DriverError::Host { stage, source };
        let place = self.workspace(order)?;
        if place.tmp.is_some() != ready.has_tmp {
            return Err(DriverError::Refused("its /tmp is another one".to_owned()));
        }
        let family = self.host.family(&ready.iid);
        let limits = &order.spec.limits;
        let applied = family
            .apply(&self.wanted(limits, order.host_uid, Some(&place.files)))
            .map_err(host("set limits"))?;
        let statuses = self.statuses(limits, &applied, &place.kept);
        ledger::check_strict(order.spec, &statuses)?;
        let launch = self.launch(order, Some(&place), None, &family)?;
        let some = |value: u64| (value > 0).then_some(value);
        let view = self.view(&place.files, place.tmp.as_deref());
        let env = environment(order.name, order.spec, &view).into_iter().collect();
        let ids = runsc::shifted_ids(&self.host.ids, order.host_uid, ready.host_uid);
        let tree = |source: &Path, at: &str| Attached {
            source: source.to_owned(),
            at: at.into(),
            ids: ids.clone(),
        };
        let tmp = place.tmp.as_deref().map(|tmp| tree(tmp, TMP));
        let claim = Claim {
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
        };
        let dir = self.host.run_dir(&ready.iid);
        let json = serde_json::to_vec(&claim).expect("a claim has string keys");
        path::write_private(&dir.join(claim::FILE), &json).map_err(host("write claim"))?;
        let link = self.host.run_dir(order.iid);
        let linked = symlink(ready.iid.as_str(), &link);
        linked
            .map_err(|source| not_made("claim", order.iid, SysError::io("link", &link, source)))?;
        family.workload.freeze(false).map_err(host("thaw"))?;
        self.ask(&ready.iid, "claim", &Request::Claim)?;
        self.host.ordered().insert(order.iid.clone(), clock::boot_ms());
        let link = crate::Driver::connect(self, order.iid);
        Ok(Started { link, limits: statuses })
    }

    /// Ends one that is nobody's. What is left of it goes when the daemon next starts.
    pub(super) fn discard(&self, iid: &Iid) {
        let _ = self.host.group(iid).freeze(false);
        let _ = self.ask(iid, "discard", &Request::Kill { reason: "discarded".to_owned() });
        let _ = self.host.group(iid).kill();
        let deadline = Instant::now() + READY_WITHIN;
        while crate::Driver::clean_up(self, iid).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
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
