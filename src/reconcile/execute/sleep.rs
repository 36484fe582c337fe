//! Keeping the memory of what runs: for an operator, or to have it go on later.

use std::sync::Arc;

use super::{Act, StepError};
use crate::reconcile::world::Again;
use sodium_model::condition::{self, Condition};
use sodium_model::event;
use sodium_model::{
    Checkpoint, ConditionType, Instance, InstancePhase, Level, Sandbox, Span, StopReason, Truth,
};
use sodium_runtime::{DriverError, Keep};

/// How soon to try again what was refused: somebody may have changed it.
const REFUSED: Span = Span::seconds(30);
/// And what has only to wait.
const BUSY: Span = Span::seconds(1);

impl Act<'_> {
    /// Keeps memory and workspace, and has the sandbox go on.
    pub(super) fn checkpoint(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        let Some(kept) = self.keep(instance, true) else { return Ok(Again::In(BUSY)) };
        let (kept, fault) = match kept {
            Ok(kept) => (Some(Arc::new(kept)), None),
            Err(DriverError::Refused(why)) => (None, Some(why)),
            Err(error) => return Err(error.into()),
        };
        let (request, now) = (self.sandbox.power.checkpoint, self.now);
        let committed = self.commit(move |core, sandbox| {
            sandbox.history.checkpointed = request;
            let (level, word, message) = match (&kept, &fault) {
                (Some(kept), _) => (Level::Normal, "Checkpointed", size(kept.bytes)),
                (None, why) => (Level::Warning, "NotCheckpointed", why.clone().unwrap_or_default()),
            };
            sandbox.history.checkpoint_fault = fault.map(event::message);
            if kept.is_some() {
                sandbox.history.saved = kept;
            }
            core.event(Some(&sandbox.name), level, (word, message), now)
        })?;
        self.sweep(&committed)?;
        Ok(Again::Now)
    }

    /// Keeps its memory, then ends it.
    pub(super) fn hibernate(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        let Some(kept) = self.keep(instance, false) else { return Ok(Again::In(BUSY)) };
        let now = self.now;
        match kept {
            Ok(kept) => {
                self.commit_instance(move |core, sandbox, instance| {
                    let message = size(kept.bytes);
                    sandbox.history.asleep = Some(Arc::new(kept));
                    instance.phase = InstancePhase::Stopping;
                    instance.stop_reason = Some(StopReason::Hibernated);
                    // It stands still, and is not to say another word.
                    instance.forced = true;
                    core.event(Some(&sandbox.name), Level::Normal, ("Hibernating", message), now)
                })?;
                Ok(Again::Now)
            }
            Err(DriverError::Refused(why)) => {
                self.commit(move |_, sandbox| {
                    refuse(sandbox, why, now);
                    Ok(())
                })?;
                Ok(Again::In(REFUSED))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// `None`: something is run inside just now.
    fn keep(
        &self,
        instance: &Arc<Instance>,
        and_go_on: bool,
    ) -> Option<Result<Checkpoint, DriverError>> {
        let sandbox = self.sandbox;
        let _kept_out = self.world.sessions.keep_out(sandbox.uid)?;
        let driver = self.world.driver(instance.spec.isolation)?;
        // Of the same instance, there may be one already.
        let dir = format!("{}.{}", instance.iid, self.now.0);
        let order = Keep {
            uid: sandbox.uid,
            host_uid: sandbox.host_uid,
            spec: &instance.spec,
            dir: &dir,
            with_workspace: and_go_on,
            and_go_on,
        };
        let kept = driver.checkpoint(&instance.iid, &order);
        Some(kept.map(|bytes| Checkpoint {
            iid: instance.iid.clone(),
            dir: dir.clone(),
            taken_at: self.now,
            runtime: instance.runtime.clone(),
            bytes,
            has_workspace: and_go_on,
            spec: instance.spec.clone(),
        }))
    }

    /// Removes the checkpoints that nothing refers to any more.
    pub(super) fn sweep(&self, sandbox: &Sandbox) -> Result<(), StepError> {
        let Some(host) = &self.world.host else { return Ok(()) };
        let history = &sandbox.history;
        let kept = [&history.asleep, &history.saved].into_iter().flatten();
        let kept: Vec<&str> = kept.map(|kept| kept.dir.as_str()).collect();
        let failed = |source| DriverError::Host { stage: "remove checkpoints", source };
        Ok(host.sweep_checkpoints(sandbox.uid, &kept).map_err(failed)?)
    }
}

/// Says why it goes on running.
fn refuse(sandbox: &mut Sandbox, why: String, now: sodium_model::Time) {
    let next = Condition {
        kind: ConditionType::Ready,
        status: Truth::False,
        reason: "CannotHibernate".to_owned(),
        message: why,
        last_transition_time: now,
        observed_generation: sandbox.generation,
    };
    condition::set(&mut sandbox.status.conditions, next);
    sandbox.status.observed_generation = sandbox.generation;
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB kept", bytes as f64 / f64::from(1 << 20))
}
