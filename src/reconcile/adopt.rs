//! What is found on the host and in no record. Instances that the store knows need nothing special:
//! the first pass of each looks at it and takes it from there.

use tracing::warn;

use crate::error::chain;
use crate::model::{Iid, Observed};
use crate::reconcile::world::World;

/// Ends what was started after the last start that the store knows of, as it is found after an older copy
/// of the store was put back: the sandbox would run twice. Before the first pass of any sandbox.
pub fn end_later_blocking(world: &World) {
    let Some(host) = &world.host else { return };
    let Some(driver) = world.drivers.values().next() else { return };
    let residues = host.residues();
    let snapshot = world.store.snapshot();
    for sandbox in snapshot.sandboxes.values() {
        let known = Iid::new(sandbox.uid, sandbox.history.instances);
        for iid in residues.iter().filter(|iid| iid.is_later_than(&known)) {
            warn!(instance = iid.as_str(), "started after the last start on record: ended");
            let ended = match driver.observe(iid) {
                Ok(Observed::Gone { .. } | Observed::Exited { .. }) => Ok(()),
                Ok(Observed::Unknown) => driver.kill_shim(iid),
                Ok(_) => driver.kill_orphan(iid),
                Err(error) => Err(error),
            };
            if let Err(error) = ended.and_then(|()| driver.clean_up(iid)) {
                warn!(instance = iid.as_str(), error = chain(&error), "not ended");
            }
        }
    }
}

/// Looks at everything on the host that no sandbox accounts for. What is dead is removed; what runs
/// is reported and left alone, since killing it would need a reason and nobody has given one.
pub fn sweep_blocking(world: &World) {
    let Some(host) = &world.host else { return };
    // Looked at before the records: what appears on the host has its record by then.
    let residues = host.residues();
    let snapshot = world.store.snapshot();
    let known = |iid: &Iid| {
        snapshot
            .sandboxes
            .values()
            .filter_map(|sandbox| sandbox.instance.as_ref())
            .any(|instance| instance.iid == *iid)
    };
    let Some(driver) = world.drivers.values().next() else { return };
    for iid in residues.into_iter().filter(|iid| !known(iid)) {
        if iid.is_waiting() {
            world.drivers.values().for_each(|driver| driver.discard(&iid));
            continue;
        }
        match driver.observe(&iid) {
            Ok(Observed::Gone { .. } | Observed::Exited { .. }) => {
                if let Err(error) = driver.clean_up(&iid) {
                    warn!(instance = iid.as_str(), error = chain(&error), "remains not removed");
                }
            }
            Ok(seen) => {
                warn!(
                    instance = iid.as_str(),
                    ?seen,
                    "runs, and no record explains it: left alone"
                );
            }
            Err(error) => warn!(instance = iid.as_str(), error = chain(&error), "look failed"),
        }
    }
}
