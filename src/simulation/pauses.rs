//! How long what failed has to wait, by how it really ended: no pause is read from the store, which is on trial.
//! Where it is not certain what the store may have forgiven, the shortest pause is what is asked for.

use std::collections::BTreeMap;

use uuid::Uuid;

use sodium_model::{ExitKind, Sandbox, Span, Time};
use sodium_runtime::fake::machine::Machine;

/// Whoever ran so long may have been called healthy.
const HEALTHY_AFTER: Span = Span::seconds(60);

/// Failures in a row, of which the present spec and request know.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    failures: BTreeMap<Uuid, u64>,
}

impl Pauses {
    /// Holds what was started since the last look against the end before it.
    pub(super) fn check(
        &mut self,
        machine: &Machine,
        before: &Sandbox,
        now: &Sandbox,
        at: Time,
    ) -> Result<(), String> {
        let failures = self.failures.entry(now.uid).or_default();
        let wish = |one: &Sandbox| (one.generation, one.power.request);
        if wish(before) != wish(now) {
            // It is judged by its own failures.
            *failures = 0;
            return Ok(());
        }
        let (Some(old), Some(new)) = (&before.instance, &now.instance) else { return Ok(()) };
        if new.n == old.n {
            return Ok(());
        }
        let answers = (old.generation, old.request) == (new.generation, new.request);
        let told = machine.truth.told.get(&old.iid).filter(|_| answers && new.n == old.n + 1);
        // Its time being over is nobody's wish.
        let was_asked =
            |reason: &Option<String>| reason.as_ref().is_some_and(|why| why != "timeout");
        let Some(told) = told.filter(|told| !was_asked(&told.exit.reason)) else {
            *failures = 0;
            return Ok(());
        };
        let lived = told.exit.started_at.map_or(Span(0), |started| started.until(told.at));
        if lived >= HEALTHY_AFTER {
            *failures = 0;
        }
        let backoff = now.spec.restart.backoff;
        let doubled = 1_u64 << (*failures).min(20);
        let pause = backoff.initial.0.saturating_mul(doubled).min(backoff.max.0);
        *failures += u64::from(told.exit.kind != ExitKind::Exited { code: 0 });
        // A tenth more or less.
        let earliest = told.exit.ended_at.after(Span(pause - pause / 10));
        if at < earliest {
            return Err(format!("{} was started {at}, and not after {earliest}", new.iid));
        }
        Ok(())
    }
}
