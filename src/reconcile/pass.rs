//! One look, one plan, one step, for one sandbox. A failure is a line of its status, never the end
//! of anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{debug, info, warn};

use crate::driver::host::Host;
use crate::driver::{Driver, DriverError};
use crate::error::chain;
use crate::model::image::Image;
use crate::model::{
    Instance, InstancePhase, Isolation, Observed, Owner, Sandbox, SandboxName, Span, Time,
};
use crate::plan::{Next, Plan, Policy, View, plan};
use crate::reconcile::console::Consoles;
use crate::reconcile::execute::{self, StepError};
use crate::store::{Snapshot, Store, StoreError};

/// Pause before trying again what may cure itself.
const RETRY: Span = Span::seconds(1);
/// A sandbox that something of exists for is looked at this often, whatever was reported.
pub(super) const RESYNC: Span = Span::seconds(60);
/// One of which nothing exists, this often.
const RESYNC_IDLE: Span = Span::seconds(600);

/// Everything a pass works with.
pub struct World {
    pub store: Store,
    pub drivers: BTreeMap<Isolation, Arc<dyn Driver>>,
    /// Why an isolation is not to be had.
    pub unavailable: BTreeMap<Isolation, String>,
    /// Where consoles and workspaces are; a simulation has none.
    pub host: Option<Arc<Host>>,
    pub images: Arc<BTreeMap<String, Image>>,
    pub boot_id: String,
    pub consoles: Arc<Consoles>,
}

/// When a sandbox is to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Now,
    In(Span),
    /// It is gone for good.
    Never,
}

impl World {
    /// The driver that started an instance, or would start one.
    pub fn driver(&self, isolation: Isolation) -> Option<&Arc<dyn Driver>> {
        // All drivers see the same instances, so any can end what a missing one has started.
        self.drivers.get(&isolation).or_else(|| self.drivers.values().next_back())
    }

    fn policy(&self, sandbox: &Sandbox, snapshot: &Snapshot) -> Policy {
        let isolation = sandbox.spec.isolation;
        let driver = self.drivers.get(&isolation);
        let none = || format!("no driver for {}", isolation.as_str());
        Policy {
            unenforced: driver.map(|driver| driver.unenforced()).unwrap_or_default(),
            unavailable: driver
                .is_none()
                .then(|| self.unavailable.get(&isolation).cloned().unwrap_or_else(none)),
            boot_id: self.boot_id.clone(),
            source_fault: source_fault(sandbox, snapshot),
        }
    }

    /// Looks and plans, and does nothing: what the loop would do next.
    pub fn explain(&self, name: &SandboxName, now: Time) -> Option<Plan> {
        let snapshot = self.store.snapshot();
        let sandbox = snapshot.sandboxes.get(name)?;
        let observed = self.observe(sandbox).ok()?;
        let policy = self.policy(sandbox, &snapshot);
        Some(plan(&View { sandbox, observed: &observed, now, policy: &policy }))
    }

    fn observe(&self, sandbox: &Sandbox) -> Result<Observed, DriverError> {
        let nothing = Observed::Gone { exit: None, residue: false };
        let Some(instance) = sandbox.instance.as_ref().filter(|one| may_exist(one)) else {
            return Ok(nothing);
        };
        match self.driver(instance.spec.isolation) {
            Some(driver) => driver.observe(&instance.iid),
            None => Ok(Observed::Unknown),
        }
    }
}

fn may_exist(instance: &Instance) -> bool {
    instance.phase != InstancePhase::Dead || !instance.released
}

/// What is wrong with the newest text of a sandbox's spec.
fn source_fault(sandbox: &Sandbox, snapshot: &Snapshot) -> Option<(String, String)> {
    let rival = snapshot.conflicts.get(&sandbox.name).and_then(|path| {
        let why = snapshot.files.get(path)?.conflicts.get(&sandbox.name)?;
        Some(("Conflict".to_owned(), format!("{path} declares it too: {why}")))
    });
    let Owner::File(path) = &sandbox.owner else { return rival };
    let Some(file) = snapshot.files.get(path) else { return rival };
    if let Some(fault) = file.faults.first() {
        let more = match file.faults.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        return Some(("InvalidFile".to_owned(), format!("{path}: {fault}{more}")));
    }
    match &file.held {
        Some(why) if file.missing.contains_key(&sandbox.name) => {
            Some(("PruneHeld".to_owned(), format!("{path} is gone; kept: {why}")))
        }
        Some(_) | None => rival,
    }
}

/// One pass. Blocks; the simulation calls it directly.
pub fn pass_blocking(world: &World, name: &SandboxName, now: Time) -> Again {
    let snapshot = world.store.snapshot();
    let Some(sandbox) = snapshot.sandboxes.get(name) else { return Again::Never };
    let observed = match world.observe(sandbox) {
        Ok(observed) => observed,
        Err(error) => {
            warn!(sandbox = name.as_str(), error = chain(&error), "look failed");
            return Again::In(RETRY);
        }
    };
    world.consoles.follow(world, sandbox, &observed);
    let policy = world.policy(sandbox, &snapshot);
    let view = View { sandbox, observed: &observed, now, policy: &policy };
    let plan = plan(&view);
    let again = match &plan.next {
        Next::Do(step) => {
            let (step, why) = (step.clone(), plan.why.clone());
            info!(sandbox = name.as_str(), step = step.word(), why, "step");
            match execute::execute(world, &view, sandbox, &plan) {
                Ok(again) => again,
                Err(error) => failed(name, &error),
            }
        }
        Next::Wait(at) => {
            published(world, sandbox, &plan).unwrap_or_else(|| Again::In(now.until(*at)))
        }
        Next::Settled => {
            published(world, sandbox, &plan).unwrap_or_else(|| Again::In(resync(sandbox)))
        }
    };
    debug!(sandbox = name.as_str(), ?again, why = plan.why, "pass");
    again
}

fn failed(name: &SandboxName, error: &StepError) -> Again {
    match error {
        // The wish changed while we planned: plan again, from what it is now.
        StepError::Overtaken => Again::Now,
        StepError::Store(error) => {
            warn!(sandbox = name.as_str(), error = chain(error), "step not stored");
            Again::In(RETRY)
        }
        StepError::Driver(error) => {
            warn!(sandbox = name.as_str(), error = chain(error), "step failed");
            Again::In(if error.is_transient() { RETRY } else { RESYNC })
        }
    }
}

/// Stores the status if it says something new. `Some` only if that failed.
fn published(world: &World, sandbox: &Arc<Sandbox>, plan: &Plan) -> Option<Again> {
    if plan.status == sandbox.status {
        return None;
    }
    match execute::publish(world, sandbox, plan) {
        Ok(()) => None,
        Err(StoreError::Busy) => Some(Again::In(RETRY)),
        Err(error) => {
            warn!(sandbox = sandbox.name.as_str(), error = chain(&error), "status not stored");
            Some(Again::In(RETRY))
        }
    }
}

fn resync(sandbox: &Sandbox) -> Span {
    let base = if sandbox.live().is_some() { RESYNC } else { RESYNC_IDLE };
    // Spread, so that ten thousand that started together are not looked at together.
    let spread = u64::from(sandbox.host_uid).wrapping_mul(2_654_435_761) % (base.0 / 4);
    Span(base.0 + spread)
}
