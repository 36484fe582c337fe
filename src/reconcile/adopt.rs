//! What is found on the host and in no record. Instances that the store knows need nothing special:
//! the first pass of each looks at it and takes it from there.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::warn;
use uuid::Uuid;

use crate::reconcile::world::World;
use crate::store::{Snapshot, Store};
use sodium_model::{Iid, Isolation, Observed};
use sodium_runtime::Driver;
use sodium_runtime::supervise::host::Host;
use sodium_sys::error::chain;
use sodium_sys::fault;

/// Ends what was started after the last start that the store knows of, as it is found after an older copy
/// of the store was put back: the sandbox would run twice. Before the first pass of any sandbox.
pub fn end_later_blocking(world: &World) {
    let Some(host) = &world.host else { return };
    let (unexplained, snapshot) = unexplained(host, &world.store);
    let is_later = |iid: &Iid| {
        let mut sandboxes = snapshot.sandboxes.values();
        sandboxes.any(|one| iid.is_later_than(&Iid::new(one.uid, one.history.instances)))
    };
    for iid in unexplained.into_iter().filter(is_later) {
        warn!(instance = iid.as_str(), "killing an instance that is newer than the store");
        let Some(driver) = driver_of(world, host, &iid) else { continue };
        let ended = match driver.observe(&iid) {
            Ok(Observed::Gone { .. } | Observed::Exited { .. }) => Ok(()),
            Ok(Observed::Unknown) => driver.kill_shim(&iid),
            Ok(_) => driver.kill_orphan(&iid),
            Err(error) => Err(error),
        };
        if let Err(error) = ended.and_then(|()| driver.clean_up(&iid)) {
            warn!(instance = iid.as_str(), error = chain(&error), "not ended");
        }
    }
}

/// Looks at everything on the host that no sandbox accounts for. What is dead is removed; what runs
/// is reported and left alone, since killing it would need a reason and nobody has given one.
pub fn sweep_blocking(world: &World) {
    let Some(host) = &world.host else { return };
    let snapshot = world.store.snapshot();
    let known: HashSet<Uuid> = snapshot.sandboxes.values().map(|sandbox| sandbox.uid).collect();
    if let Err(error) = host.sweep_stray_checkpoints(|uid| known.contains(&uid)) {
        warn!(error = chain(&error), "stray checkpoints not removed");
    }
    for iid in unexplained(host, &world.store).0 {
        if iid.is_waiting() {
            world.drivers.values().for_each(|driver| driver.discard(&iid));
            continue;
        }
        let Some(driver) = driver_of(world, host, &iid) else { continue };
        match driver.observe(&iid) {
            Ok(Observed::Gone { .. } | Observed::Exited { .. }) => {
                if let Err(error) = driver.clean_up(&iid) {
                    warn!(instance = iid.as_str(), error = chain(&error), "remains not removed");
                }
            }
            Ok(seen) => {
                warn!(instance = iid.as_str(), ?seen, "orphan instance found; leaving it alone");
            }
            Err(error) => warn!(instance = iid.as_str(), error = chain(&error), "observe failed"),
        }
    }
}

/// The driver that started what no record explains. Of what has not even an order nothing was started, and what
/// remains is files and groups, which are the same for all.
fn driver_of<'w>(world: &'w World, host: &Host, iid: &Iid) -> Option<&'w Arc<dyn Driver>> {
    world.driver(host.isolation_of(iid).unwrap_or(Isolation::Process))
}

/// What is on the host and in no record, and the records. The host is looked at first: what appears there
/// has its record by then.
pub(super) fn unexplained(host: &Host, store: &Store) -> (Vec<Iid>, Arc<Snapshot>) {
    let mut residues = host.residues();
    let _ = fault::reach("between host and store");
    let snapshot = store.snapshot();
    let instances = snapshot.sandboxes.values().filter_map(|one| one.instance.as_ref());
    let known: HashSet<&Iid> = instances.map(|instance| &instance.iid).collect();
    residues.retain(|iid| !known.contains(iid));
    (residues, snapshot)
}
