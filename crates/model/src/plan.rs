//! Decides what to do; does nothing.
//!
//! Everything that can be decided is decided here, from values, so that every decision can be
//! tested without a host: the loop, dry runs, the command line and the simulation all call
//! [`plan`]. `reconcile` only carries out.
//!
//! ```text
//!   Sandbox (wanted, remembered) + Observed (seen) + now + Policy
//!        --> one Step | wait until | settled      and the Status that says so
//! ```

pub mod alarm;
pub mod backoff;
pub mod diff;
pub mod report;
pub mod step;

pub use report::report;
pub use step::{Next, Plan, Step, Stopping};

use crate::instance::LostCause;
use crate::{
    Allowed, Enforce, ExitKind, ExitRecord, Hold, InUse, Instance, InstancePhase, Observed,
    Promised, RestartPolicy, Sandbox, Span, Spec, StopReason, Time, WallStatus,
};
use diff::Effect;

/// A shim that holds its lock and does not answer is given this long, then it is killed.
pub const UNKNOWN_MAX: Span = Span::seconds(60);
/// Why nothing runs on a host that is drained.
const DRAINED: &str = "the host is drained; it runs again after `sodiumd undrain`";
/// How soon to look again at something that cannot be seen.
const LOOK_AGAIN: Span = Span::seconds(1);

/// How soon to look whether something holds less now.
const LOOK_AT_USE: Span = Span::seconds(10);

/// What this host allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What may be started here.
    pub allowed: Allowed,
    /// What everything that runs here is promised.
    pub held: Promised,
    /// Limits that nothing here can keep, and why.
    pub unenforced: Vec<(&'static str, String)>,
    /// Walls that cannot be put up here.
    pub missing_walls: Vec<WallStatus>,
    /// Why the isolation asked for is not to be had here at all.
    pub unavailable: Option<String>,
    /// Why that is not known yet, for a moment.
    pub not_yet: Option<String>,
    /// Which boot of the machine this is.
    pub boot_id: String,
    /// The program that would run it, with its version.
    pub runtime: Option<String>,
    /// Whether somebody runs something inside.
    pub is_busy: bool,
    /// Why its files take more than they may, if nothing but us keeps the limit.
    pub disk_over: Option<String>,
    /// What it holds, if its spec has changed since it was started.
    pub in_use: InUse,
    /// Whether the kernel can make what runs stand still.
    pub can_freeze: bool,
    /// What has been idle for this long is frozen until it is needed.
    pub idle_freeze: Option<Span>,
    /// Whether nothing is to run here, whatever is declared.
    pub drained: bool,
    /// What is wrong with the newest text of the spec, if its source is at fault.
    pub source_fault: Option<(String, String)>,
}

/// Everything a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub sandbox: &'a Sandbox,
    pub observed: &'a Observed,
    pub now: Time,
    /// Since when it has neither said, heard nor computed anything; `None` where nobody asks.
    pub idle_since: Option<Time>,
    pub policy: &'a Policy,
}

impl<'a> View<'a> {
    /// Where idleness does not matter.
    pub fn of(sandbox: &'a Sandbox, observed: &'a Observed, now: Time, policy: &'a Policy) -> Self {
        Self { sandbox, observed, now, idle_since: None, policy }
    }
}

/// The one thing to do next, why, and what to tell people meanwhile.
pub fn plan(view: &View<'_>) -> Plan {
    let (next, why) = decide(view);
    let status = report(view, &next, &why);
    Plan { next, why, status }
}

fn decide(view: &View<'_>) -> (Next, String) {
    match &view.sandbox.instance {
        Some(instance) if instance.phase != InstancePhase::Dead => with_live(view, instance),
        Some(instance) if !instance.released => clean_up(view, instance),
        Some(_) | None => without(view),
    }
}

/// An instance exists, or may.
fn with_live(view: &View<'_>, instance: &Instance) -> (Next, String) {
    match view.observed {
        Observed::Exited { exit } | Observed::Gone { exit: Some(exit), .. } => record(exit.clone()),
        Observed::Gone { exit: None, began } => record(lost(view, instance, *began)),
        Observed::Orphan => {
            (Next::Do(Step::KillOrphan), "its shim is gone, so it cannot be watched".to_owned())
        }
        Observed::Unknown => unknown(view),
        Observed::Launching | Observed::Running { .. } | Observed::Stopping { .. } => {
            with_answering(view, instance)
        }
    }
}

fn with_answering(view: &View<'_>, instance: &Instance) -> (Next, String) {
    let wanted = must_end(view, instance);
    if instance.phase == InstancePhase::Stopping {
        return go_on_stopping(view, instance, wanted);
    }
    let is_to_sleep = view.sandbox.wants_to_sleep();
    if let Some(stopping) = wanted.filter(|_| !is_to_sleep) {
        let why = stopping.why.clone();
        return (Next::Do(Step::Stop(stopping)), why);
    }
    if let Observed::Running { pid, started_at, .. } = view.observed
        && instance.phase == InstancePhase::Starting
    {
        let step = Step::MarkRunning { pid: *pid, started_at: *started_at };
        return (Next::Do(step), "its program runs".to_owned());
    }
    if is_to_sleep {
        return hibernate(view, instance);
    }
    let asked = view.sandbox.power.checkpoint > view.sandbox.history.checkpointed;
    if asked && matches!(view.observed, Observed::Running { .. }) {
        return keep(view, Step::Checkpoint, "an operator asked for a checkpoint");
    }
    // What may not be started is not what something becomes, either.
    let may_change = view.policy.allowed.refusal(&view.sandbox.spec).is_none();
    if instance.generation != view.sandbox.generation && may_change {
        return change_in_place(view, instance);
    }
    // What has ended by itself while its end cannot be kept, on a full disk, grows no healthier.
    let runs = matches!(view.observed, Observed::Running { .. });
    let healthy_at = backoff::healthy_at(view.sandbox, instance).filter(|_| runs);
    if healthy_at.is_some_and(|at| at <= view.now) {
        let why = "it ran long enough to be called healthy".to_owned();
        return (Next::Do(Step::MarkHealthy), why);
    }
    let stillness = stillness(view);
    let frozen = matches!(view.observed, Observed::Running { frozen: true, .. });
    match stillness {
        Some(why) if !frozen && view.policy.can_freeze => {
            return (Next::Do(Step::Freeze), why.to_owned());
        }
        None if frozen => return (Next::Do(Step::Thaw), "it is needed again".to_owned()),
        Some(_) | None => (),
    }
    let again = [healthy_at, idle_look(view).filter(|_| !frozen)].into_iter().flatten().min();
    let why = stillness.filter(|_| frozen).unwrap_or("it runs").to_owned();
    (again.map_or(Next::Settled, Next::Wait), why)
}

/// Its spec has changed, and what runs can take the change as it is; or not yet, since it holds more.
fn change_in_place(view: &View<'_>, instance: &Instance) -> (Next, String) {
    let in_use = &view.policy.in_use;
    let change = diff::classify(&instance.spec, &view.sandbox.spec, in_use);
    let refused = change.refused(in_use);
    let no_room = no_room_to_grow(view, instance);
    let why = match (refused.is_empty(), no_room) {
        (true, None) => {
            return (Next::Do(Step::Adjust), format!("changed in place: {}", change.names()));
        }
        (false, _) => format!(
            "not changed yet: {refused}; it keeps running as it was until it holds less or is restarted"
        ),
        (true, Some(why)) => {
            format!("not changed yet: {why}; it keeps running as it was until there is room")
        }
    };
    (Next::Wait(view.now.after(LOOK_AT_USE)), why)
}

/// Others may hold more than they are declared with by now, until they hold less.
fn no_room_to_grow(view: &View<'_>, instance: &Instance) -> Option<String> {
    let (old, new) = (Promised::held_by(instance), Promised::by(&view.sandbox.spec.limits));
    let Policy { allowed, held, .. } = view.policy;
    allowed.totals.refusal(&held.without(old), &old, &new)
}

/// Why what runs should stand still, if it should.
fn stillness(view: &View<'_>) -> Option<&'static str> {
    if view.sandbox.power.paused {
        return Some("paused by an operator");
    }
    let idle = view.idle_since?.after(view.policy.idle_freeze?) <= view.now;
    idle.then_some("frozen while idle; input, exec or any verb wakes it")
}

/// When to look whether it is still idle: a few times before that is certain.
fn idle_look(view: &View<'_>) -> Option<Time> {
    let (since, span) = (view.idle_since?, view.policy.idle_freeze?);
    Some(since.after(span).min(view.now.after(Span(span.0 / 4))))
}

/// It is to be put to sleep: its memory is kept first, then it is ended.
fn hibernate(view: &View<'_>, instance: &Instance) -> (Next, String) {
    if view.sandbox.history.asleep.as_ref().is_some_and(|kept| kept.iid == instance.iid) {
        let why = "its memory is kept".to_owned();
        let reason = StopReason::Hibernated;
        return (Next::Do(Step::Stop(Stopping { reason, force: true, why: why.clone() })), why);
    }
    match view.observed {
        Observed::Running { .. } => keep(view, Step::Hibernate, "its spec says hibernated"),
        Observed::Gone { .. }
        | Observed::Launching
        | Observed::Stopping { .. }
        | Observed::Exited { .. }
        | Observed::Orphan
        | Observed::Unknown => (Next::Settled, "it hibernates when it runs".to_owned()),
    }
}

/// Takes a checkpoint as soon as that can be gone on from.
fn keep(view: &View<'_>, step: Step, why: &str) -> (Next, String) {
    if view.policy.is_busy {
        let why = format!("{why}; it waits for what is run inside to end");
        return (Next::Wait(view.now.after(LOOK_AGAIN)), why);
    }
    (Next::Do(step), why.to_owned())
}

/// A stop is never taken back: what was asked to end has begun to.
fn go_on_stopping(
    view: &View<'_>,
    instance: &Instance,
    wanted: Option<Stopping>,
) -> (Next, String) {
    let reason = instance.stop_reason.unwrap_or(StopReason::Stopped);
    let force = wanted.is_some_and(|stopping| stopping.force);
    let again = |force, why: &str| {
        let why = why.to_owned();
        (Next::Do(Step::Stop(Stopping { reason, force, why: why.clone() })), why)
    };
    if force && !instance.forced {
        return again(true, "it is to end at once");
    }
    match view.observed {
        // The daemon died between deciding and telling.
        Observed::Running { .. } | Observed::Launching => {
            again(instance.forced, "it has not been told to stop yet")
        }
        Observed::Gone { .. }
        | Observed::Stopping { .. }
        | Observed::Exited { .. }
        | Observed::Orphan
        | Observed::Unknown => (Next::Settled, format!("stopping: {}", reason.as_str())),
    }
}

/// Why the instance must end, if it must.
fn must_end(view: &View<'_>, instance: &Instance) -> Option<Stopping> {
    let sandbox = view.sandbox;
    let stopping = |reason, force, why: &str| Some(Stopping { reason, force, why: why.to_owned() });
    if let Some(deletion) = sandbox.deletion {
        return stopping(StopReason::Deleted, deletion.force, "it is being deleted");
    }
    if !sandbox.wants_to_run() {
        return match sandbox.power.hold {
            Some(Hold::Killed) => stopping(StopReason::Killed, true, "an operator killed it"),
            Some(Hold::Stopped) => stopping(StopReason::Stopped, false, "an operator stopped it"),
            Some(Hold::Started) | None => {
                stopping(StopReason::Stopped, false, "its spec says stopped")
            }
        };
    }
    if view.policy.drained {
        return stopping(StopReason::Drained, false, DRAINED);
    }
    if instance.request < sandbox.power.request {
        return stopping(StopReason::Restarted, false, "an operator asked for a restart");
    }
    if let Some(why) = view.policy.disk_over.clone() {
        return stopping(StopReason::Disk, false, &why);
    }
    let at_once = view.policy.allowed.enforce == Enforce::Now;
    let allowed = |spec: &Spec| view.policy.allowed.refusal(spec).filter(|_| at_once);
    if let Some(why) = allowed(&sandbox.spec) {
        return stopping(StopReason::Policy, false, &why);
    }
    if let Some(why) = open_walls(view, instance) {
        return stopping(StopReason::Walls, true, &why);
    }
    if instance.generation == sandbox.generation {
        return None;
    }
    let change = diff::classify(&instance.spec, &sandbox.spec, &view.policy.in_use);
    match change.effect {
        Effect::InPlace if no_room_to_grow(view, instance).is_none() => None,
        Effect::Same => None,
        // It waits until less is in use, by itself or by others; what is allowed does not.
        Effect::Refused | Effect::InPlace => {
            allowed(&instance.spec).and_then(|why| stopping(StopReason::Policy, false, &why))
        }
        Effect::Restart | Effect::Recreate => {
            let why = format!("its spec changed: {}", change.names());
            stopping(StopReason::SpecChanged, false, &why)
        }
    }
}

/// Which walls of a strict sandbox do not stand, by what was read of its process.
fn open_walls(view: &View<'_>, instance: &Instance) -> Option<String> {
    let read = view.sandbox.spec.strict && instance.phase == InstancePhase::Running;
    let open = report::open_walls(&view.sandbox.status.walls);
    (read && !open.is_empty()).then(|| format!("strict: {open}"))
}

fn unknown(view: &View<'_>) -> (Next, String) {
    let since = report::unknown_since(view.sandbox).unwrap_or(view.now);
    if since.after(UNKNOWN_MAX) <= view.now {
        let why = format!("its shim has not answered for {UNKNOWN_MAX}");
        return (Next::Do(Step::KillShim), why);
    }
    let why = "its shim holds the lock and does not answer; that proves nothing".to_owned();
    (Next::Wait(view.now.after(LOOK_AGAIN)), why)
}

fn record(exit: ExitRecord) -> (Next, String) {
    let why = exit.summary();
    (Next::Do(Step::RecordExit(Box::new(exit))), why)
}

/// It is proved to be gone and left no word.
fn lost(view: &View<'_>, instance: &Instance, began: bool) -> ExitRecord {
    let cause = if instance.boot_id != view.policy.boot_id {
        LostCause::Reboot
    } else if instance.phase == InstancePhase::Starting && !began {
        LostCause::NeverStarted
    } else {
        LostCause::ShimGone
    };
    ExitRecord {
        started_at: instance.started_at,
        reason: instance.stop_reason.map(|reason| reason.as_str().to_owned()),
        ..ExitRecord::unmeasured(instance.iid.clone(), ExitKind::Lost { cause }, view.now)
    }
}

/// The instance is recorded dead; what it left on the host is not removed yet.
fn clean_up(view: &View<'_>, instance: &Instance) -> (Next, String) {
    match view.observed {
        Observed::Gone { .. } | Observed::Exited { .. } => {
            (Next::Do(Step::CleanUp), format!("{} has ended", instance.iid))
        }
        Observed::Orphan => (Next::Do(Step::KillOrphan), "something of it still runs".to_owned()),
        Observed::Unknown => {
            let why = "it has ended, and its shim does not answer".to_owned();
            (Next::Do(Step::KillShim), why)
        }
        // A dead row whose shim goes on can only come from a database older than the machine.
        Observed::Launching | Observed::Running { .. } | Observed::Stopping { .. } => {
            (Next::Do(Step::KillOrphan), "running although recorded dead".to_owned())
        }
    }
}

/// Nothing of it exists.
fn without(view: &View<'_>) -> (Next, String) {
    let sandbox = view.sandbox;
    if sandbox.deletion.is_some() {
        return (Next::Do(Step::Forget), "it is being deleted".to_owned());
    }
    if !sandbox.wants_to_run() {
        let why = if sandbox.power.hold.is_some() {
            "held by an operator"
        } else if sandbox.history.asleep.is_some() {
            "hibernated; it resumes when its spec says running"
        } else if sandbox.wants_to_sleep() {
            "its spec says hibernated, and there is nothing to keep"
        } else {
            "its spec says stopped"
        };
        return (Next::Settled, why.to_owned());
    }
    if view.policy.drained {
        return (Next::Settled, DRAINED.to_owned());
    }
    if let Some(why) = not_allowed(view).or_else(|| refusal(view)) {
        return (Next::Settled, why);
    }
    match sandbox.instance.as_deref() {
        Some(instance) if answers(instance, sandbox) => after_exit(view, instance),
        Some(_) => start(view, "asked to run"),
        None => start(view, "it has never run"),
    }
}

/// Begins anew, or restoring from its checkpoint.
fn start(view: &View<'_>, why: &str) -> (Next, String) {
    if let Some(why) = &view.policy.not_yet {
        return (Next::Wait(view.now.after(LOOK_AGAIN)), why.clone());
    }
    if let Some(why) = no_room(view) {
        return (Next::Wait(view.now.after(LOOK_AT_USE)), why);
    }
    let Some(kept) = &view.sandbox.history.asleep else {
        return (Next::Do(Step::Start), why.to_owned());
    };
    let change = diff::classify(&kept.spec, &view.sandbox.spec, &view.policy.in_use);
    if change.effect > Effect::InPlace {
        let fields = change.names();
        let why = format!("starts fresh: its spec changed since its checkpoint: {fields}");
        return (Next::Do(Step::Start), why);
    }
    let runtime = view.policy.runtime.as_deref().unwrap_or("nothing");
    if runtime != kept.runtime {
        let why = format!(
            "cannot restore: the checkpoint was taken with {}, and this host has {runtime}; a restart \
             starts fresh without it",
            kept.runtime
        );
        return (Next::Settled, why);
    }
    (Next::Do(Step::Restore), "restoring from its checkpoint".to_owned())
}

/// Why this host does not allow the next start, unless there is to be none anyway.
fn not_allowed(view: &View<'_>) -> Option<String> {
    let why = view.policy.allowed.refusal(&view.sandbox.spec)?;
    stays_down(view.sandbox).is_none().then_some(why)
}

/// Why it has to wait until something else ends.
fn no_room(view: &View<'_>) -> Option<String> {
    let (none, own) = (Promised::default(), Promised::by(&view.sandbox.spec.limits));
    let why = view.policy.allowed.totals.refusal(&view.policy.held, &none, &own)?;
    Some(format!("no room beside what runs: {why}"))
}

/// Why it may not start, whatever anybody wants.
fn refusal(view: &View<'_>) -> Option<String> {
    let spec = &view.sandbox.spec;
    if spec.command.is_empty() {
        return Some("no command: give spec.command or an image with a startup".to_owned());
    }
    if let Some(unavailable) = &view.policy.unavailable {
        return Some(unavailable.clone());
    }
    if let Some(why) = view.policy.disk_over.clone() {
        return Some(format!("{why}; remove some, or raise disk_mb"));
    }
    let broken = report::unenforced(spec, view.policy);
    if spec.strict && !broken.is_empty() {
        let names: Vec<&str> = broken.iter().map(|(name, _)| *name).collect();
        return Some(format!("strict: {} not enforced here", names.join(", ")));
    }
    let missing = report::open_walls(&view.policy.missing_walls);
    if spec.strict && !missing.is_empty() {
        return Some(format!("strict: {missing}"));
    }
    None
}

/// The last run answered the present spec and request: the restart policy decides.
fn after_exit(view: &View<'_>, instance: &Instance) -> (Next, String) {
    let sandbox = view.sandbox;
    let Some(exit) = &instance.exit else { return start(view, "its last end is not known") };
    if came_to_nothing(exit) {
        return start(view, "its last start came to nothing");
    }
    if let Some(why) = stays_down(sandbox) {
        return (Next::Settled, why);
    }
    let (restart, ended) = (&sandbox.spec.restart, exit.summary());
    match sandbox.history.not_before {
        Some(at) if at > view.now => {
            // A clock that jumped back must not strand it.
            let longest = restart.backoff.max.max(Span(sandbox.history.delay_ms));
            let latest = view.now.after(longest.max(backoff::STARTS_APART));
            (Next::Wait(at.min(latest)), ended)
        }
        Some(_) | None => start(view, &ended),
    }
}

/// Whether a run answered the present spec and request.
fn answers(instance: &Instance, sandbox: &Sandbox) -> bool {
    instance.generation == sandbox.generation && instance.request == sandbox.power.request
}

/// Whether an end says nothing about the program.
fn came_to_nothing(exit: &ExitRecord) -> bool {
    exit.kind == (ExitKind::Lost { cause: LostCause::NeverStarted }) || exit.was_asked()
}

/// Why the end of the last run is the last word, if its restart policy says so.
fn stays_down(sandbox: &Sandbox) -> Option<String> {
    let instance = sandbox.instance.as_deref().filter(|one| answers(one, sandbox))?;
    let exit = instance.exit.as_ref().filter(|exit| !came_to_nothing(exit))?;
    let (restart, ended) = (&sandbox.spec.restart, exit.summary());
    match restart.policy {
        RestartPolicy::Never => return Some(ended),
        RestartPolicy::OnFailure if exit.is_success() => return Some(ended),
        RestartPolicy::OnFailure | RestartPolicy::Always => (),
    }
    let failures = sandbox.history.failures;
    let gave_up = restart.max_failures > 0 && failures >= restart.max_failures;
    gave_up.then(|| format!("{ended}; gave up after {failures} failures in a row"))
}

#[cfg(test)]
mod tests;
