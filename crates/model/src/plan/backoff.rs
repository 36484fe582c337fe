//! How long to wait before starting again. Pure: the jitter comes from the instance's name, and the
//! pause is stored, so that neither a restart of the daemon nor a second look changes it.

use crate::{ExitRecord, History, Instance, InstancePhase, Sandbox, Span, Time};

/// Running this long, or twice the last pause, counts as healthy again.
const HEALTHY_AFTER: Span = Span::seconds(60);
/// Between two starts that nobody asked for.
pub(super) const STARTS_APART: Span = Span::seconds(1);
/// Yet never longer than this.
const HEALTHY_AFTER_MAX: Span = Span::seconds(600);

/// What to remember after an end.
pub fn after_exit(sandbox: &Sandbox, exit: &ExitRecord) -> History {
    let mut history = sandbox.history.clone();
    for (limit, count) in exit.breaches() {
        if count > 0 {
            history.breaches.entry(limit.to_owned()).or_default().add(count, exit.ended_at);
        }
    }
    if exit.is_innocent() {
        return History { not_before: None, ..history };
    }
    let ran = exit.started_at.map_or(Span(0), |started| started.until(exit.ended_at));
    let before = if ran >= healthy_after(&history) { 0 } else { history.failures };
    let failures = before + 1;
    let delay = delay(sandbox, failures, exit.iid.as_str());
    // However short the pause is that was asked for: a start is everybody's work.
    let apart = exit.started_at.unwrap_or(exit.ended_at).after(STARTS_APART);
    History {
        failures: if exit.is_success() { before } else { failures },
        delay_ms: delay.0,
        not_before: Some(exit.ended_at.after(delay).max(apart)),
        ..history
    }
}

/// When the running instance will have run long enough for its failures to be forgotten.
pub fn healthy_at(sandbox: &Sandbox, instance: &Instance) -> Option<Time> {
    let running = instance.phase == InstancePhase::Running && sandbox.history.failures > 0;
    running.then(|| instance.started_at.map(|at| at.after(healthy_after(&sandbox.history))))?
}

fn healthy_after(history: &History) -> Span {
    HEALTHY_AFTER.max(Span(history.delay_ms.saturating_mul(2))).min(HEALTHY_AFTER_MAX)
}

/// The first pause doubled for each failure, up to the longest, and a tenth more or less.
fn delay(sandbox: &Sandbox, failures: u64, iid: &str) -> Span {
    let range = sandbox.spec.restart.backoff;
    let doublings = u32::try_from(failures.saturating_sub(1).min(40)).unwrap_or(40);
    let pause = range.initial.0.saturating_mul(1 << doublings).min(range.max.0);
    // FNV-1a over the name: many sandboxes that failed together do not come back together.
    let hash = iid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let spread = pause / 5;
    Span(pause - spread / 2 + hash % (spread + 1))
}
