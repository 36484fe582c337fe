//! One look, one plan, one step, for one sandbox. A failure is a line of its status, never the end
//! of anything.

use std::sync::Arc;

use tracing::{debug, info, warn};

use crate::reconcile::execute::{self, SOON, StepError};
use crate::reconcile::world::{Again, RESYNC, World};
use crate::store::StoreError;
use sodium_model::plan::{Next, Plan, View, plan};
use sodium_model::{Sandbox, SandboxName, Span, Time};
use sodium_sys::error::chain;
use sodium_sys::fault::{self, Bug};

/// Pause before trying again what may cure itself.
const RETRY: Span = Span::seconds(1);
/// One of which nothing exists, this often: there is nothing about it that could change unseen.
const RESYNC_IDLE: Span = Span::seconds(3_600);

/// One pass. Blocks; the simulation calls it directly.
pub fn pass_blocking(world: &World, name: &SandboxName, now: Time) -> Again {
    let snapshot = world.store.snapshot();
    let Some(sandbox) = snapshot.sandboxes.get(name) else { return Again::Never };
    let forgetful = fault::has(Bug::ForgottenPause).then(|| without_pause(sandbox));
    let sandbox = forgetful.as_ref().unwrap_or(sandbox);
    let observed = match world.observe(sandbox) {
        Ok(observed) => observed,
        Err(error) => {
            warn!(sandbox = name.as_str(), error = chain(&error), "observe failed");
            return Again::In(RETRY);
        }
    };
    let driver = sandbox.live().and_then(|live| world.driver(live.spec.isolation));
    world.consoles.follow(sandbox, &observed, driver.map(|driver| &**driver));
    let policy = world.policy(sandbox, &snapshot);
    let idle_since = world.idle_since(sandbox, &observed, &policy, now);
    let view = View { sandbox, observed: &observed, now, idle_since, policy: &policy };
    let plan = world.in_turn(&view, plan(&view));
    let again = match &plan.next {
        Next::Do(step) => {
            let (step, why) = (step.clone(), plan.why.clone());
            info!(sandbox = name.as_str(), step = step.word(), why, "step");
            match execute::execute(world, &view, sandbox, &plan) {
                Ok(again) => again,
                Err(error) => {
                    world.give_turn_back(sandbox.uid);
                    failed(name, &error)
                }
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

fn without_pause(sandbox: &Sandbox) -> Arc<Sandbox> {
    let mut forgetful = sandbox.clone();
    forgetful.history.not_before = None;
    Arc::new(forgetful)
}

fn failed(name: &SandboxName, error: &StepError) -> Again {
    match error {
        // The wish changed while we planned: plan again, from what it is now.
        StepError::Overtaken => Again::Now,
        StepError::Store(error) => {
            warn!(sandbox = name.as_str(), error = chain(error), "step not stored");
            Again::In(RETRY)
        }
        StepError::Driver(error) if error.is_unheard() => {
            debug!(sandbox = name.as_str(), error = chain(error), "nobody to ask");
            Again::In(SOON)
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
    // Spread, so that ten thousand that started together are not looked at together: those that cost nothing
    // in between over as long again.
    let (base, spread) = match sandbox.live() {
        Some(_) => (RESYNC, RESYNC.0 / 4),
        None => (RESYNC_IDLE, RESYNC_IDLE.0),
    };
    Span(base.0 + u64::from(sandbox.host_uid).wrapping_mul(2_654_435_761) % spread)
}
