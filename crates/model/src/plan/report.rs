//! What to tell people: conditions first, and the one-word phase from them.

use crate::condition::{self, Condition};
use crate::plan::{Next, Policy, Step, View, no_room, not_allowed};
use crate::{
    ConditionType, ExitKind, ExitRecord, InstancePhase, LimitStatus, Observed, Phase, Sandbox,
    Spec, Status, StopReason, Time, Truth, Verdict, WallStatus,
};

/// The reason of the Running condition while an operator has it stand still.
pub const PAUSED: &str = "Paused";

/// The reason of conditions of what this host does not allow.
pub const POLICY_REFUSED: &str = "PolicyRefused";

/// Limits the spec asks for and nothing here keeps, and why.
pub fn unenforced<'p>(spec: &Spec, policy: &'p Policy) -> Vec<(&'static str, &'p str)> {
    policy
        .unenforced
        .iter()
        .filter(|(name, _)| spec.limits.get(name).is_some_and(|value| value > 0))
        .map(|(name, reason)| (*name, reason.as_str()))
        .collect()
}

/// Who asked for the end of an instance, if anybody did.
pub fn asked_by(sandbox: &Sandbox, exit: &ExitRecord) -> Option<String> {
    let reason = exit.reason.as_deref()?;
    let is = |other: StopReason| reason == other.as_str();
    let operator = "an operator";
    if is(StopReason::SpecChanged) {
        let edit = sandbox.history.edits.last();
        return Some(edit.map_or_else(|| sandbox.owner.to_string(), |edit| edit.by.to_string()));
    }
    if is(StopReason::Deleted) {
        // A file that is gone leaves the workspace for its return.
        let removed = sandbox.deletion.is_some_and(|deletion| deletion.keep_workspace);
        return Some(if removed { sandbox.owner.to_string() } else { operator.to_owned() });
    }
    if is(StopReason::Stopped) && sandbox.power.hold.is_none() {
        return Some(sandbox.owner.to_string());
    }
    if is(StopReason::Timeout) {
        return Some("the time limit".to_owned());
    }
    if is(StopReason::Disk) {
        return Some("the disk limit".to_owned());
    }
    if is(StopReason::Policy) {
        return Some("config.json".to_owned());
    }
    if is(StopReason::Walls) {
        return Some("its spec, which is strict".to_owned());
    }
    Some(operator.to_owned())
}

/// Which walls a strict sandbox was ended for.
pub fn refused_walls(sandbox: &Sandbox, exit: &ExitRecord) -> Option<String> {
    let open = open_walls(&sandbox.status.walls);
    (exit.is_for_walls() && !open.is_empty()).then(|| format!("strict: {open}"))
}

/// Since when nothing is known of what runs.
pub fn unknown_since(sandbox: &Sandbox) -> Option<Time> {
    let running =
        sandbox.status.conditions.iter().find(|one| one.kind == ConditionType::Running)?;
    (running.status == Truth::Unknown).then_some(running.last_transition_time)
}

/// The status that goes with a decision.
pub fn report(view: &View<'_>, next: &Next, why: &str) -> Status {
    let sandbox = view.sandbox;
    let mut status = sandbox.status.clone();
    // Of one that it is not known for a moment how it can be started, or that has to wait for its turn.
    let is_not_yet = matches!(next, Next::Wait(_)) && view.policy.not_yet.as_deref() == Some(why);
    status.phase = if is_not_yet { Phase::Pending } else { phase(view, next) };
    status.next_start_at = match next {
        Next::Wait(at) if status.phase == Phase::BackingOff => Some(*at),
        Next::Do(_) | Next::Wait(_) | Next::Settled => None,
    };
    // Observed is what has been decided about; one that is on its way up or down is not there yet.
    let on_its_way = sandbox
        .live()
        .is_some_and(|one| matches!(one.phase, InstancePhase::Starting | InstancePhase::Stopping));
    if !matches!(next, Next::Do(_)) && !is_not_yet && !on_its_way {
        status.observed_generation = sandbox.generation;
        status.observed_request = sandbox.power.request;
    }
    if sandbox.live().is_none() {
        status.limits = predicted_limits(&sandbox.spec, view.policy);
        status.walls.clone_from(&view.policy.missing_walls);
    }
    let limits = unkept(&status.limits);
    let was_refused = status.conditions.iter().any(|one| one.kind == ConditionType::Allowed);
    let walls = walls(sandbox, &status.walls);
    let mut set = |kind, truth, reason: &str, message: &str| {
        let observed_generation = sandbox.generation;
        let (reason, message) = (reason.to_owned(), message.to_owned());
        let next = Condition {
            kind,
            status: truth,
            reason,
            message,
            last_transition_time: view.now,
            observed_generation,
        };
        condition::set(&mut status.conditions, next);
    };
    let (truth, reason) = running(view);
    set(ConditionType::Running, truth, reason, why);
    let (truth, reason) = if is_not_yet { (Truth::False, "Preparing") } else { ready(view, next) };
    set(ConditionType::Ready, truth, reason, why);
    match &view.policy.source_fault {
        Some((reason, message)) => set(ConditionType::SpecCurrent, Truth::False, reason, message),
        None => set(ConditionType::SpecCurrent, Truth::True, "Accepted", ""),
    }
    if limits.is_empty() {
        set(ConditionType::LimitsEnforced, Truth::True, "AllEnforced", "");
    } else {
        set(ConditionType::LimitsEnforced, Truth::False, "NotEnforced", &limits);
    }
    match view.policy.allowed.refusal(&sandbox.spec) {
        Some(why) => set(ConditionType::Allowed, Truth::False, POLICY_REFUSED, &why),
        None if was_refused => set(ConditionType::Allowed, Truth::True, "Allowed", ""),
        None => (),
    }
    let (truth, reason, message) = &walls;
    set(ConditionType::WallsEnforced, *truth, reason, message);
    status
}

/// What to say of the walls: of what runs and was not looked at, nothing is known.
fn walls(sandbox: &Sandbox, walls: &[WallStatus]) -> (Truth, &'static str, String) {
    let open = open_walls(walls);
    if !open.is_empty() {
        return (Truth::False, "NotEnforced", open);
    }
    let ended = sandbox.last_exit().filter(|exit| exit.is_for_walls());
    if let Some(exit) = ended.filter(|_| sandbox.live().is_none()) {
        return (Truth::False, "NotEnforced", exit.hint.clone().unwrap_or_default());
    }
    let runs = sandbox.live().is_some_and(|live| live.phase == InstancePhase::Running);
    if runs && walls.is_empty() {
        return (Truth::Unknown, "NotReadBack", "read at its next start".to_owned());
    }
    (Truth::True, "AllEnforced", String::new())
}

/// `landlock is not enforced (reason); …`: those that are promised and do not stand.
pub fn open_walls(walls: &[WallStatus]) -> String {
    let open = walls.iter().filter(|wall| wall.is_open());
    let texts: Vec<String> =
        open.map(|wall| format!("{} is not enforced ({})", wall.wall, wall.reason)).collect();
    texts.join("; ")
}

/// `disk_mb: not enforced (reason), …`.
fn unkept(limits: &[LimitStatus]) -> String {
    let broken = limits.iter().filter(|limit| limit.requested > 0 && !limit.is_enforced());
    let texts: Vec<String> =
        broken.map(|limit| format!("{}: not enforced ({})", limit.limit, limit.reason)).collect();
    texts.join("; ")
}

/// What is known of the limits before a start: those that nothing here will keep.
fn predicted_limits(spec: &Spec, policy: &Policy) -> Vec<LimitStatus> {
    let broken = unenforced(spec, policy);
    let predict = |(name, reason): (&str, &str)| LimitStatus {
        limit: name.to_owned(),
        requested: spec.limits.get(name).unwrap_or(0),
        mechanism: String::new(),
        read_back: None,
        verdict: Verdict::Unsupported,
        reason: reason.to_owned(),
    };
    broken.into_iter().map(predict).collect()
}

fn running(view: &View<'_>) -> (Truth, &'static str) {
    if view.sandbox.live().is_none() {
        return (Truth::False, "NoInstance");
    }
    match view.observed {
        Observed::Running { frozen: true, .. } if view.sandbox.power.paused => {
            (Truth::True, PAUSED)
        }
        Observed::Running { frozen: true, .. } => (Truth::True, "Frozen"),
        Observed::Running { .. } => (Truth::True, "ProgramRuns"),
        Observed::Stopping { .. } => (Truth::True, "Stopping"),
        Observed::Launching => (Truth::False, "Launching"),
        Observed::Exited { .. } | Observed::Gone { .. } => (Truth::False, "Ended"),
        Observed::Orphan => (Truth::Unknown, "ShimGone"),
        Observed::Unknown => (Truth::Unknown, "ShimSilent"),
    }
}

fn ready(view: &View<'_>, next: &Next) -> (Truth, &'static str) {
    let sandbox = view.sandbox;
    let current = |generation| generation == sandbox.generation;
    if let Some(live) = sandbox.live() {
        if sandbox.wants_to_sleep() {
            return (Truth::False, "Progressing");
        }
        return match view.observed {
            Observed::Running { .. } if current(live.generation) && live.stop_reason.is_none() => {
                (Truth::True, "Running")
            }
            Observed::Unknown => (Truth::Unknown, "ShimSilent"),
            Observed::Gone { .. }
            | Observed::Launching
            | Observed::Running { .. }
            | Observed::Stopping { .. }
            | Observed::Exited { .. }
            | Observed::Orphan => (Truth::False, "Progressing"),
        };
    }
    match next {
        Next::Do(_) => (Truth::False, "Progressing"),
        Next::Wait(_) if no_room(view).is_some() => (Truth::False, "NoRoom"),
        Next::Wait(_) => (Truth::False, "BackingOff"),
        Next::Settled if !sandbox.wants_to_run() => match sandbox.history.asleep {
            Some(_) => (Truth::True, "Hibernated"),
            None => (Truth::True, "Stopped"),
        },
        Next::Settled if view.policy.drained => (Truth::False, "Drained"),
        Next::Settled if not_allowed(view).is_some() => (Truth::False, POLICY_REFUSED),
        Next::Settled => match sandbox.last_exit() {
            Some(exit) if exit.is_success() => (Truth::True, "Completed"),
            Some(_) => (Truth::False, "Failed"),
            None => (Truth::False, "CannotStart"),
        },
    }
}

fn phase(view: &View<'_>, next: &Next) -> Phase {
    let sandbox = view.sandbox;
    if sandbox.deletion.is_some() {
        return Phase::Deleting;
    }
    if let Some(live) = sandbox.live() {
        return match (view.observed, live.phase) {
            (Observed::Unknown | Observed::Orphan, _) => Phase::Unknown,
            (_, InstancePhase::Stopping) => Phase::Stopping,
            (_, InstancePhase::Starting) => Phase::Starting,
            (Observed::Running { frozen: true, .. }, _) if sandbox.power.paused => Phase::Paused,
            (_, InstancePhase::Running | InstancePhase::Dead) => Phase::Running,
        };
    }
    match next {
        Next::Do(Step::Start | Step::Restore) => Phase::Pending,
        Next::Wait(_) if no_room(view).is_some() => Phase::Pending,
        Next::Wait(_) => Phase::BackingOff,
        Next::Do(_) | Next::Settled if !sandbox.wants_to_run() => match sandbox.history.asleep {
            Some(_) => Phase::Hibernated,
            None => Phase::Stopped,
        },
        Next::Settled if view.policy.drained => Phase::Stopped,
        Next::Settled if not_allowed(view).is_some() => Phase::Failed,
        Next::Do(_) | Next::Settled => match sandbox.last_exit().map(|exit| &exit.kind) {
            Some(ExitKind::Exited { code: 0 }) => Phase::Completed,
            Some(_) => Phase::Failed,
            None if sandbox.instance.is_some() => Phase::Stopped,
            None => Phase::Failed,
        },
    }
}
