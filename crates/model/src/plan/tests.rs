//! The planner's decisions, as tables: every test goes through one `check`.

mod ended;
mod policy;

use std::sync::Arc;

use super::*;
use crate::spec::{BackoffRange, Stop};
use crate::{
    Ceilings, Checkpoint, ConditionType, Deletion, History, Iid, InUse, Isolation, Limits, Network,
    Owner, Phase, Power, Restart, SandboxName, Spec, State, Status, Totals, Truth, Wall,
    WallVerdict,
};

const NOW: Time = Time(1_000_000);

fn spec() -> Spec {
    Spec {
        image: None,
        isolation: Isolation::Bubblewrap,
        command: vec!["sh".to_owned()],
        env: Default::default(),
        state: State::Running,
        restart: Restart {
            policy: RestartPolicy::OnFailure,
            backoff: BackoffRange { initial: Span::seconds(1), max: Span::seconds(300) },
            max_failures: 0,
        },
        stop: Stop { signal: "SIGTERM".to_owned(), grace: Span::seconds(10) },
        tty: false,
        network: Network::None,
        limits: Limits::DEFAULT,
        strict: false,
        ephemeral: false,
        files: Default::default(),
    }
}

fn web() -> Sandbox {
    Sandbox {
        name: SandboxName::try_from("web").unwrap(),
        uid: uuid::Uuid::nil(),
        owner: Owner::Api,
        labels: Default::default(),
        generation: 1,
        spec: Arc::new(spec()),
        created_at: Time(0),
        host_uid: 0,
        power: Power::default(),
        deletion: None,
        history: History::default(),
        instance: None,
        status: Status::default(),
        rv: 1,
    }
}

fn instance(phase: InstancePhase) -> Instance {
    Instance {
        reserved: None,
        iid: Iid::new(uuid::Uuid::nil(), 1),
        n: 1,
        generation: 1,
        request: 0,
        spec: spec(),
        phase,
        boot_id: "boot".to_owned(),
        runtime: String::new(),
        created_at: Time(0),
        started_at: Some(NOW),
        pid: None,
        stop_reason: None,
        forced: false,
        exit: None,
        restored: false,
        released: phase == InstancePhase::Dead,
    }
}

fn with(phase: InstancePhase) -> Sandbox {
    Sandbox { instance: Some(Arc::new(instance(phase))), ..web() }
}

fn exit(kind: ExitKind) -> ExitRecord {
    let iid = Iid::new(uuid::Uuid::nil(), 1);
    ExitRecord { started_at: Some(NOW), ..ExitRecord::unmeasured(iid, kind, NOW) }
}

/// It has run, ended like this, and nothing of it is left.
fn ended(kind: ExitKind) -> Sandbox {
    let record = exit(kind);
    let mut sandbox = web();
    sandbox.history = backoff::after_exit(&sandbox, &record);
    sandbox.instance =
        Some(Arc::new(Instance { exit: Some(record), ..instance(InstancePhase::Dead) }));
    sandbox
}

const GONE: Observed = Observed::Gone { exit: None, began: false };
const RUNS: Observed = Observed::Running { pid: Some(7), started_at: NOW, frozen: false };
const FROZEN: Observed = Observed::Running { pid: Some(7), started_at: NOW, frozen: true };
const STOPS: Observed = Observed::Stopping { pid: Some(7), started_at: Some(NOW) };

fn policy() -> Policy {
    Policy {
        allowed: Allowed::default(),
        held: Promised::default(),
        unenforced: vec![("disk_mb", "no quota".to_owned())],
        missing_walls: Vec::new(),
        unavailable: None,
        not_yet: None,
        boot_id: "boot".to_owned(),
        runtime: Some("runsc 1".to_owned()),
        is_busy: false,
        disk_over: None,
        in_use: InUse::default(),
        can_freeze: true,
        idle_freeze: None,
        drained: false,
        source_fault: None,
    }
}

fn planned(sandbox: &Sandbox, observed: &Observed) -> Plan {
    plan(&View::of(sandbox, observed, NOW, &policy()))
}

/// The single place that knows the planner's signature.
#[track_caller]
fn check(sandbox: &Sandbox, observed: &Observed, want: &str) {
    let plan = planned(sandbox, observed);
    let next = match &plan.next {
        Next::Settled => "settled".to_owned(),
        Next::Wait(at) => format!("wait {}", NOW.until(*at)),
        Next::Do(step) => step.word().to_owned(),
    };
    assert_eq!(format!("{next}: {} ({})", plan.why, plan.status.phase), want);
}

#[test]
fn what_should_run_is_started_and_marked() {
    check(&web(), &GONE, "start: it has never run (Pending)");
    check(&with(InstancePhase::Starting), &Observed::Launching, "settled: it runs (Starting)");
    check(&with(InstancePhase::Starting), &RUNS, "mark running: its program runs (Starting)");
    check(&with(InstancePhase::Running), &RUNS, "settled: it runs (Running)");
}

#[test]
fn what_should_not_run_is_stopped() {
    let mut held = with(InstancePhase::Running);
    held.power.hold = Some(Hold::Stopped);
    check(&held, &RUNS, "stop: an operator stopped it (Running)");
    held.power.hold = Some(Hold::Killed);
    check(&held, &RUNS, "kill: an operator killed it (Running)");
    let mut deleted = with(InstancePhase::Running);
    deleted.deletion = Some(Deletion { at: NOW, keep_workspace: false, force: false });
    check(&deleted, &RUNS, "stop: it is being deleted (Deleting)");
    deleted.instance = None;
    check(&deleted, &GONE, "forget: it is being deleted (Deleting)");
    let mut stopped = web();
    stopped.spec = Arc::new(Spec { state: State::Stopped, ..spec() });
    check(&stopped, &GONE, "settled: its spec says stopped (Stopped)");
    stopped.power.hold = Some(Hold::Started);
    check(&stopped, &GONE, "start: it has never run (Pending)");
}

#[test]
fn a_stop_is_repeated_until_it_was_heard_and_never_taken_back() {
    let stopping = Instance {
        stop_reason: Some(StopReason::SpecChanged),
        ..instance(InstancePhase::Stopping)
    };
    let mut sandbox = Sandbox { instance: Some(Arc::new(stopping)), ..web() };
    check(&sandbox, &RUNS, "stop: it has not been told to stop yet (Stopping)");
    check(&sandbox, &STOPS, "settled: stopping: spec_changed (Stopping)");
    // A restart is not observed while the run before it ends: whoever waits would think it refused.
    sandbox.power.request = 7;
    assert_ne!(planned(&sandbox, &STOPS).status.observed_request, 7);
    sandbox.power.hold = Some(Hold::Killed);
    check(&sandbox, &STOPS, "kill: it is to end at once (Stopping)");
}

#[test]
fn a_changed_spec_reaches_as_far_as_it_must() {
    let changed = |change: &dyn Fn(&mut Spec)| {
        let mut new = spec();
        change(&mut new);
        Sandbox { generation: 2, spec: Arc::new(new), ..with(InstancePhase::Running) }
    };
    let memory = changed(&|spec| spec.limits.memory_mb = 64);
    check(&memory, &RUNS, "adjust in place: changed in place: memory_mb (Running)");
    let files = changed(&|spec| spec.limits.max_files = 9);
    check(&files, &RUNS, "stop: its spec changed: max_files (Running)");
    let command = changed(&|spec| spec.command.push("x".to_owned()));
    check(&command, &RUNS, "stop: its spec changed: command (Running)");
    let image = changed(&|spec| spec.image = Some("bash".to_owned()));
    assert_eq!(diff::classify(&spec(), &image.spec, &InUse::default()).effect, Effect::Recreate);
    let processes = |isolation| {
        let old = Spec { isolation, ..spec() };
        let mut new = old.clone();
        new.limits.max_processes += 1;
        diff::classify(&old, &new, &InUse::default()).effect
    };
    assert_eq!(processes(Isolation::Bubblewrap), Effect::InPlace);
    assert_eq!(processes(Isolation::Gvisor), Effect::Restart, "its guests are born with it");
    // The end it came to under the old spec says nothing about the new one.
    let mut fixed = ended(ExitKind::Exited { code: 1 });
    fixed.generation = 2;
    check(&fixed, &GONE, "start: asked to run (Pending)");
}

#[test]
fn the_restart_policy_decides_after_an_end() {
    let policy = |policy, kind| {
        let mut sandbox = ended(kind);
        let mut spec = spec();
        spec.restart.policy = policy;
        sandbox.spec = Arc::new(spec);
        sandbox
    };
    let code = |code| ExitKind::Exited { code };
    let never = RestartPolicy::Never;
    check(&policy(never, code(0)), &GONE, "settled: exited with code 0 (Completed)");
    check(&policy(never, code(3)), &GONE, "settled: exited with code 3 (Failed)");
    let on_failure = RestartPolicy::OnFailure;
    check(&policy(on_failure, code(0)), &GONE, "settled: exited with code 0 (Completed)");
    check(&policy(on_failure, code(3)), &GONE, "wait 1s 11ms: exited with code 3 (BackingOff)");
    check(
        &policy(RestartPolicy::Always, code(0)),
        &GONE,
        "wait 1s 11ms: exited with code 0 (BackingOff)",
    );
    let reboot = ExitKind::Lost { cause: LostCause::Reboot };
    check(
        &policy(on_failure, reboot),
        &GONE,
        "start: ended with a restart of the machine (Pending)",
    );
}

#[test]
fn back_off_grows_is_bounded_and_ends_with_health() {
    let mut sandbox = web();
    let failure = exit(ExitKind::Exited { code: 1 });
    let mut delays = Vec::new();
    for _ in 0..12 {
        sandbox.history = backoff::after_exit(&sandbox, &failure);
        delays.push(sandbox.history.delay_ms);
    }
    let pauses = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300];
    for (delay, pause) in delays.into_iter().zip(pauses) {
        assert!((pause * 900..=pause * 1100).contains(&delay), "{delay} ms is not about {pause} s");
    }
    let long = ExitRecord { started_at: Some(Time(0)), ..failure };
    sandbox.history = backoff::after_exit(&sandbox, &long);
    assert_eq!(sandbox.history.failures, 1);
    sandbox.instance = Some(Arc::new(instance(InstancePhase::Running)));
    check(&sandbox, &RUNS, "wait 1m: it runs (Running)");
    let now = Time(NOW.0 + 60_000);
    let later = plan(&View::of(&sandbox, &RUNS, now, &policy()));
    assert_eq!(later.next, Next::Do(Step::MarkHealthy));
    let ended = plan(&View::of(&sandbox, &STOPS, now, &policy()));
    assert_ne!(ended.next, Next::Do(Step::MarkHealthy), "it ended before it was told to");
}

#[test]
fn what_is_paused_stands_still_until_it_is_resumed_or_has_to_end() {
    let mut sandbox = with(InstancePhase::Running);
    sandbox.power.paused = true;
    check(&sandbox, &RUNS, "freeze: paused by an operator (Running)");
    check(&sandbox, &FROZEN, "settled: paused by an operator (Paused)");
    sandbox.power.hold = Some(Hold::Stopped);
    check(&sandbox, &FROZEN, "stop: an operator stopped it (Paused)");
    sandbox.power = Power::default();
    check(&sandbox, &FROZEN, "thaw: it is needed again (Running)");
    // Where nothing can be frozen, nothing is tried.
    sandbox.power.paused = true;
    let unable = Policy { can_freeze: false, ..policy() };
    assert_eq!(plan(&View::of(&sandbox, &RUNS, NOW, &unable)).next, Next::Settled);
}

fn kept() -> Checkpoint {
    Checkpoint {
        iid: instance(InstancePhase::Running).iid,
        dir: "a".to_owned(),
        taken_at: NOW,
        runtime: "runsc 1".to_owned(),
        bytes: 1,
        has_workspace: false,
        spec: spec(),
    }
}

#[test]
fn what_hibernates_is_kept_first_and_ended_then() {
    let mut sandbox = with(InstancePhase::Running);
    sandbox.spec = Arc::new(Spec { state: State::Hibernated, ..spec() });
    sandbox.generation += 1;
    check(&sandbox, &RUNS, "hibernate: its spec says hibernated (Running)");
    check(&sandbox, &FROZEN, "hibernate: its spec says hibernated (Running)");
    let busy = Policy { is_busy: true, ..policy() };
    let waits = plan(&View::of(&sandbox, &RUNS, NOW, &busy));
    assert_eq!(waits.next, Next::Wait(NOW.after(LOOK_AGAIN)), "{}", waits.why);
    sandbox.history.asleep = Some(Arc::new(kept()));
    check(&sandbox, &RUNS, "kill: its memory is kept (Running)");
    // Of an older instance: not what runs now.
    sandbox.history.asleep =
        Some(Arc::new(Checkpoint { iid: Iid::new(sandbox.uid, 99), ..kept() }));
    check(&sandbox, &RUNS, "hibernate: its spec says hibernated (Running)");
    // An operator's word is above the spec's.
    sandbox.power.hold = Some(Hold::Stopped);
    check(&sandbox, &RUNS, "stop: an operator stopped it (Running)");
}

#[test]
fn what_was_kept_is_gone_on_from_unless_it_cannot_be() {
    let mut sandbox = ended(ExitKind::Signaled { signal: "SIGKILL".to_owned() });
    sandbox.history.asleep = Some(Arc::new(kept()));
    sandbox.spec = Arc::new(Spec { state: State::Hibernated, ..spec() });
    let why = "settled: hibernated; it resumes when its spec says running (Hibernated)";
    check(&sandbox, &GONE, why);
    sandbox.spec = Arc::new(spec());
    sandbox.power.request += 1;
    check(&sandbox, &GONE, "restore: restoring from its checkpoint (Pending)");
    sandbox.spec = Arc::new(Spec { command: vec!["other".to_owned()], ..spec() });
    let why = "start: starts fresh: its spec changed since its checkpoint: command (Pending)";
    check(&sandbox, &GONE, why);
    sandbox.spec = Arc::new(spec());
    let other = Policy { runtime: Some("runsc 2".to_owned()), ..policy() };
    let refused = plan(&View::of(&sandbox, &GONE, NOW, &other));
    assert_eq!(refused.next, Next::Settled);
    assert!(
        refused.why.contains("taken with runsc 1, and this host has runsc 2"),
        "{}",
        refused.why
    );
}

#[test]
fn what_is_idle_for_long_is_frozen_until_it_is_not() {
    let sandbox = with(InstancePhase::Running);
    let policy = Policy { idle_freeze: Some(Span::seconds(40)), ..policy() };
    let at = |observed: &Observed, idle_seconds: u64| {
        let idle_since = Some(Time(NOW.0 - idle_seconds * 1000));
        let view = View { sandbox: &sandbox, observed, now: NOW, idle_since, policy: &policy };
        let plan = plan(&view);
        (plan.next, plan.status.phase)
    };
    let wait = |seconds: u64| Next::Wait(NOW.after(Span::seconds(seconds)));
    assert_eq!(at(&RUNS, 0), (wait(10), Phase::Running));
    assert_eq!(at(&RUNS, 35), (wait(5), Phase::Running));
    assert_eq!(at(&RUNS, 40), (Next::Do(Step::Freeze), Phase::Running));
    assert_eq!(at(&FROZEN, 41), (Next::Settled, Phase::Running));
    assert_eq!(at(&FROZEN, 0), (Next::Do(Step::Thaw), Phase::Running));
}

#[test]
fn giving_up_is_final_until_something_changes() {
    let mut sandbox = ended(ExitKind::Exited { code: 1 });
    let mut limited = spec();
    limited.restart.max_failures = 1;
    sandbox.spec = Arc::new(limited);
    check(
        &sandbox,
        &GONE,
        "settled: exited with code 1; gave up after 1 failures in a row (Failed)",
    );
    sandbox.power.request = 1;
    check(&sandbox, &GONE, "start: asked to run (Pending)");
}

#[test]
fn unknown_is_not_dead() {
    let sandbox = with(InstancePhase::Running);
    let why = "its shim holds the lock and does not answer; that proves nothing";
    check(&sandbox, &Observed::Unknown, &format!("wait 1s: {why} (Unknown)"));
    let mut long = sandbox;
    long.status = planned(&long, &Observed::Unknown).status;
    long.status.conditions[0].last_transition_time = Time(NOW.0 - 60_000);
    check(&long, &Observed::Unknown, "kill shim: its shim has not answered for 1m (Unknown)");
    check(
        &long,
        &Observed::Orphan,
        "kill orphan: its shim is gone, so it cannot be watched (Unknown)",
    );
}

#[test]
fn a_shim_that_falls_silent_after_the_end_does_not_stand_in_the_way() {
    let sandbox = ended(ExitKind::Exited { code: 0 });
    let dead = Instance { released: false, ..Instance::clone(sandbox.instance.as_ref().unwrap()) };
    let sandbox = Sandbox { instance: Some(Arc::new(dead)), ..sandbox };
    let plan = planned(&sandbox, &Observed::Unknown);
    assert_eq!(plan.next, Next::Do(Step::KillShim), "{plan:?}");
}

#[test]
fn silence_that_began_when_a_clock_was_wrong_ends_too() {
    let mut sandbox = with(InstancePhase::Running);
    sandbox.status = planned(&sandbox, &Observed::Unknown).status;
    sandbox.status.conditions[0].last_transition_time = Time(NOW.0 + 1_000_000_000);
    let status = planned(&sandbox, &Observed::Unknown).status;
    assert_eq!(status.conditions[0].last_transition_time, NOW);
}

#[test]
fn an_end_that_nobody_saw_is_lost_and_never_invented() {
    let cause = |sandbox: &Sandbox, observed: &Observed| match planned(sandbox, observed).next {
        Next::Do(Step::RecordExit(exit)) => exit.kind,
        next @ (Next::Do(_) | Next::Wait(_) | Next::Settled) => panic!("{next:?}"),
    };
    let lost = |cause| ExitKind::Lost { cause };
    let began = Observed::Gone { exit: None, began: true };
    assert_eq!(cause(&with(InstancePhase::Starting), &GONE), lost(LostCause::NeverStarted));
    // A shim that dies at once must not be started over and over without a pause.
    assert_eq!(cause(&with(InstancePhase::Starting), &began), lost(LostCause::ShimGone));
    assert_eq!(cause(&with(InstancePhase::Running), &GONE), lost(LostCause::ShimGone));
    let old = Instance { boot_id: "earlier".to_owned(), ..instance(InstancePhase::Running) };
    let old = Sandbox { instance: Some(Arc::new(old)), ..web() };
    assert_eq!(cause(&old, &GONE), lost(LostCause::Reboot));
}

#[test]
fn a_dead_instance_is_cleaned_up_before_the_next_one_starts() {
    let mut sandbox = ended(ExitKind::Exited { code: 0 });
    sandbox.power.request = 1;
    let dirty = Instance { released: false, ..instance(InstancePhase::Dead) };
    sandbox.instance = Some(Arc::new(dirty));
    let exited = Observed::Exited { exit: exit(ExitKind::Exited { code: 0 }) };
    assert_eq!(planned(&sandbox, &exited).next, Next::Do(Step::CleanUp));
    assert_eq!(planned(&sandbox, &RUNS).next, Next::Do(Step::KillOrphan));
}

#[test]
fn limits_that_are_not_kept_are_said_and_strict_refuses() {
    let plan = planned(&web(), &GONE);
    let limits = plan.status.conditions.iter().find(|one| one.reason == "NotEnforced").unwrap();
    assert_eq!(limits.message, "disk_mb: not enforced (no quota)");
    let mut strict = web();
    strict.spec = Arc::new(Spec { strict: true, ..spec() });
    check(&strict, &GONE, "settled: strict: disk_mb not enforced here (Failed)");
    let mut unlimited = Spec { strict: true, ..spec() };
    unlimited.limits.disk_mb = 0;
    strict.spec = Arc::new(unlimited);
    check(&strict, &GONE, "start: it has never run (Pending)");
}

fn open_wall() -> WallStatus {
    WallStatus {
        wall: Wall::Landlock,
        requested: "set".to_owned(),
        mechanism: String::new(),
        effective: None,
        verdict: WallVerdict::NotEnforced,
        reason: "not here".to_owned(),
    }
}

fn walls_condition(plan: &Plan) -> (Truth, &str, &str) {
    let all = &plan.status.conditions;
    let one = all.iter().find(|one| one.kind == ConditionType::WallsEnforced).unwrap();
    (one.status, one.reason.as_str(), one.message.as_str())
}

const OPEN: &str = "landlock is not enforced (not here)";

#[test]
fn a_wall_that_does_not_stand_is_said_and_ends_what_is_strict() {
    let mut sandbox = with(InstancePhase::Running);
    assert_eq!(walls_condition(&planned(&sandbox, &RUNS)).0, Truth::Unknown);
    let stands = WallStatus { verdict: WallVerdict::Enforced, ..open_wall() };
    let nobodys = WallStatus { verdict: WallVerdict::None, ..open_wall() };
    sandbox.status.walls = vec![stands, nobodys];
    assert_eq!(walls_condition(&planned(&sandbox, &RUNS)).0, Truth::True);
    sandbox.status.walls.push(open_wall());
    let lax = planned(&sandbox, &RUNS);
    assert_eq!(walls_condition(&lax), (Truth::False, "NotEnforced", OPEN));
    assert!(!matches!(lax.next, Next::Do(_)), "{lax:?}");
    sandbox.spec = Arc::new(Spec { strict: true, ..spec() });
    let strict = planned(&sandbox, &RUNS);
    let Next::Do(Step::Stop(stopping)) = strict.next else { panic!("{strict:?}") };
    assert_eq!((stopping.reason, stopping.force), (StopReason::Walls, true));
    assert_eq!(strict.why, format!("strict: {OPEN}"));
    // What is written there while it starts is not of this instance.
    sandbox.instance = Some(Arc::new(instance(InstancePhase::Starting)));
    let starting = planned(&sandbox, &Observed::Launching);
    assert!(!matches!(starting.next, Next::Do(_)), "{starting:?}");
}

#[test]
fn what_was_ended_for_a_wall_counts_as_failed_and_says_which() {
    let signal = "SIGKILL".to_owned();
    let mut record = exit(ExitKind::Signaled { signal });
    record.reason = Some(StopReason::Walls.as_str().to_owned());
    let mut sandbox = with(InstancePhase::Running);
    sandbox.status.walls = vec![open_wall()];
    record.hint = report::refused_walls(&sandbox, &record);
    assert!(!record.was_asked() && !record.is_innocent());
    sandbox = ended(ExitKind::Exited { code: 0 });
    sandbox.history = backoff::after_exit(&web(), &record);
    let dead = Instance { exit: Some(record), ..instance(InstancePhase::Dead) };
    sandbox.instance = Some(Arc::new(dead));
    let planned = planned(&sandbox, &GONE);
    assert!(matches!(planned.next, Next::Wait(_)), "{planned:?}");
    let want = format!("strict: {OPEN}");
    assert_eq!(walls_condition(&planned), (Truth::False, "NotEnforced", want.as_str()));
    assert!(planned.why.ends_with(&want), "{}", planned.why);
}

#[test]
fn a_wall_that_this_host_cannot_put_up_is_said_and_strict_does_not_start() {
    let policy = Policy { missing_walls: vec![open_wall()], ..policy() };
    let mut sandbox = web();
    let lax = plan(&View::of(&sandbox, &GONE, NOW, &policy));
    assert_eq!(lax.next, Next::Do(Step::Start));
    assert_eq!(walls_condition(&lax), (Truth::False, "NotEnforced", OPEN));
    let mut strict = Spec { strict: true, ..spec() };
    strict.limits.disk_mb = 0;
    sandbox.spec = Arc::new(strict);
    let refused = plan(&View::of(&sandbox, &GONE, NOW, &policy));
    assert_eq!((refused.next, refused.why), (Next::Settled, format!("strict: {OPEN}")));
}

#[test]
fn a_status_says_generation_only_when_its_consequences_are_stored() {
    let mut sandbox = web();
    sandbox.generation = 5;
    assert_eq!(planned(&sandbox, &GONE).status.observed_generation, 0);
    let running = Instance { generation: 5, ..instance(InstancePhase::Running) };
    sandbox.instance = Some(Arc::new(running));
    assert_eq!(planned(&sandbox, &RUNS).status.observed_generation, 5);
    // Looking again at the same thing changes nothing.
    let once = planned(&sandbox, &RUNS).status;
    sandbox.status = once.clone();
    assert_eq!(planned(&sandbox, &RUNS).status, once);
}

#[test]
fn each_field_says_how_it_is_changed_and_what_is_below_its_use_waits() {
    let in_use = InUse { memory_bytes: 300 << 20, disk_bytes: 500 << 20, ..InUse::default() };
    let effects = |memory_mb, disk_mb, in_use: &InUse| -> Vec<&str> {
        let new = Spec { limits: Limits { memory_mb, disk_mb, ..spec().limits }, ..spec() };
        diff::classify(&spec(), &new, in_use)
            .fields
            .iter()
            .map(|(_, effect)| effect.word())
            .collect()
    };
    let refused = "refused: below current use";
    assert_eq!(effects(400, 600, &in_use), ["live", "restart"]);
    assert_eq!(effects(200, 400, &in_use), [refused, refused]);
    let quota = InUse { disk_grows: true, disk_shrinks: true, ..in_use };
    assert_eq!(effects(400, 600, &quota), ["live", "live"]);
    assert_eq!(effects(400, 0, &quota), ["live", "restart"]);
    let mut small = web();
    small.generation = 2;
    small.spec = Arc::new(Spec { limits: Limits { memory_mb: 200, ..spec().limits }, ..spec() });
    small.instance = Some(Arc::new(instance(InstancePhase::Running)));
    let policy = Policy { in_use, ..policy() };
    let planned = plan(&View::of(&small, &RUNS, NOW, &policy));
    assert!(matches!(planned.next, Next::Wait(_)), "{planned:?}");
    let want = "not changed yet: memory_mb refused: below current use (300 MiB)";
    assert!(planned.why.starts_with(want), "{}", planned.why);
}

#[test]
fn files_that_take_more_than_they_may_end_what_runs_and_keep_it_down() {
    let policy =
        Policy { disk_over: Some("its files take 2048 MiB of 1024".to_owned()), ..policy() };
    let mut full = web();
    full.instance = Some(Arc::new(instance(InstancePhase::Running)));
    let planned = plan(&View::of(&full, &RUNS, NOW, &policy));
    let Next::Do(Step::Stop(stopping)) = planned.next else { panic!("{planned:?}") };
    assert_eq!(stopping.reason, StopReason::Disk);
    full.instance = None;
    let planned = plan(&View::of(&full, &GONE, NOW, &policy));
    assert_eq!(planned.next, Next::Settled);
    assert!(planned.why.contains("2048 MiB of 1024; remove some"), "{}", planned.why);
}
