//! What the host's rules do not allow any more, and what has no room.

use super::*;

/// What is said of whether this host allows it, and of whether it is as its spec wants it.
fn allowed_and_ready(plan: &Plan) -> [Option<(Truth, &str)>; 2] {
    [ConditionType::Allowed, ConditionType::Ready].map(|kind| {
        let found = plan.status.conditions.iter().find(|one| one.kind == kind);
        found.map(|one| (one.status, one.reason.as_str()))
    })
}

fn floor(floor: Isolation, enforce: Enforce) -> Policy {
    Policy { allowed: Allowed { floor, enforce, ..Allowed::default() }, ..policy() }
}

#[test]
fn what_is_not_allowed_any_more_is_not_started_and_says_which_rule_it_breaks() {
    let strict = floor(Isolation::Gvisor, Enforce::AtRestart);
    let refused = |sandbox: &Sandbox| {
        let plan = plan(&View::of(sandbox, &GONE, NOW, &strict));
        assert_eq!(plan.next, Next::Settled, "{plan:?}");
        assert_eq!(plan.status.phase, Phase::Failed);
        let [allowed, ready] = allowed_and_ready(&plan);
        assert_eq!(allowed, Some((Truth::False, report::POLICY_REFUSED)));
        assert_eq!(ready, Some((Truth::False, report::POLICY_REFUSED)));
        plan.why
    };
    let why = "not allowed here: spec.isolation: bubblewrap is weaker than gvisor, the floor set by \
               \"isolation_floor\" in config.json";
    assert_eq!(refused(&web()), why);
    // Whatever its next start would have come from.
    refused(&ended(ExitKind::Exited { code: 1 }));
    let mut asleep = web();
    asleep.history.asleep = Some(Arc::new(kept()));
    refused(&asleep);
    let mut asked = ended(ExitKind::Exited { code: 0 });
    asked.power.request += 1;
    refused(&asked);
    // What is not to run again is not refused anything.
    let done = ended(ExitKind::Exited { code: 0 });
    let plan = plan(&View::of(&done, &GONE, NOW, &strict));
    assert_eq!((plan.next, plan.status.phase), (Next::Settled, Phase::Completed));
}

#[test]
fn a_network_that_is_off_is_not_given_to_what_was_declared_before() {
    let mut open = web();
    open.spec = Arc::new(Spec { network: Network::Host, ..spec() });
    let why = "settled: not allowed here: spec.network: host needs \"network\": {\"enabled\": true} \
               in config.json (Failed)";
    check(&open, &GONE, why);
    let allowed = Allowed { network_enabled: true, ..Allowed::default() };
    let plan = plan(&View::of(&open, &GONE, NOW, &Policy { allowed, ..policy() }));
    assert_eq!(plan.next, Next::Do(Step::Start));
}

#[test]
fn what_runs_and_is_not_allowed_any_more_goes_on_or_is_stopped_as_enforce_says() {
    let running = with(InstancePhase::Running);
    let goes_on = floor(Isolation::Gvisor, Enforce::AtRestart);
    let plan_a = plan(&View::of(&running, &RUNS, NOW, &goes_on));
    assert_eq!(plan_a.next, Next::Settled);
    let said = [Some((Truth::False, report::POLICY_REFUSED)), Some((Truth::True, "Running"))];
    assert_eq!(allowed_and_ready(&plan_a), said);
    // Mended, it says that too; and nothing is said of what was never refused.
    let mut mended = running.clone();
    mended.status = plan_a.status;
    let plan_b = planned(&mended, &RUNS);
    assert_eq!(allowed_and_ready(&plan_b)[0], Some((Truth::True, "Allowed")));
    assert_eq!(allowed_and_ready(&planned(&running, &RUNS))[0], None);
    let at_once = floor(Isolation::Gvisor, Enforce::Now);
    let plan_c = plan(&View::of(&running, &RUNS, NOW, &at_once));
    let Next::Do(Step::Stop(stopping)) = plan_c.next else { panic!("{plan_c:?}") };
    assert_eq!((stopping.reason, stopping.force), (StopReason::Policy, false));
    assert!(stopping.why.contains("isolation_floor"), "{}", stopping.why);
}

#[test]
fn what_is_above_a_ceiling_is_not_started_and_what_runs_is_cut_down_in_place() {
    let ceilings = Ceilings { memory_mb: 256, ..Ceilings::NONE };
    let allowed = Allowed { ceilings, enforce: Enforce::Now, ..Allowed::default() };
    let policy = Policy { allowed, ..policy() };
    let refused = plan(&View::of(&web(), &GONE, NOW, &policy));
    assert_eq!(refused.next, Next::Settled);
    assert!(refused.why.contains("512 is above 256, the ceiling"), "{}", refused.why);
    // Its spec was mended, and what runs can take that as it is, unless it holds more.
    let mut mended = with(InstancePhase::Running);
    mended.generation = 2;
    mended.spec = Arc::new(Spec { limits: Limits { memory_mb: 200, ..spec().limits }, ..spec() });
    let next = |policy: &Policy| plan(&View::of(&mended, &RUNS, NOW, policy)).next;
    assert_eq!(next(&policy), Next::Do(Step::Adjust));
    let in_use = InUse { memory_bytes: 300 << 20, ..InUse::default() };
    let Next::Do(Step::Stop(stopping)) = next(&Policy { in_use, ..policy }) else { panic!() };
    assert_eq!(stopping.reason, StopReason::Policy);
}

#[test]
fn what_has_no_room_beside_what_runs_waits_for_it() {
    let totals = Totals { memory_mb: 1024, ..Totals::default() };
    let allowed = Allowed { totals, ..Allowed::default() };
    let beside = |memory_mb| {
        let held = Promised::by(&Limits { memory_mb, ..Limits::NONE });
        let policy = Policy { allowed: allowed.clone(), held, ..policy() };
        plan(&View::of(&web(), &GONE, NOW, &policy))
    };
    assert_eq!(beside(512).next, Next::Do(Step::Start));
    let waits = beside(513);
    assert_eq!(waits.next, Next::Wait(NOW.after(LOOK_AT_USE)));
    assert_eq!((waits.status.phase, waits.status.next_start_at), (Phase::Pending, None));
    assert_eq!(allowed_and_ready(&waits), [None, Some((Truth::False, "NoRoom"))]);
    assert!(waits.why.contains("1025 would be promised"), "{}", waits.why);
}

#[test]
fn what_is_found_out_in_a_moment_is_waited_for_and_refuses_nothing() {
    let policy = Policy { not_yet: Some("finding out".to_owned()), runtime: None, ..policy() };
    let waits = plan(&View::of(&web(), &GONE, NOW, &policy));
    assert_eq!(
        (&waits.next, waits.why.as_str()),
        (&Next::Wait(NOW.after(LOOK_AGAIN)), "finding out")
    );
    assert_eq!((waits.status.phase, waits.status.next_start_at), (Phase::Pending, None));
    assert_eq!(allowed_and_ready(&waits)[1], Some((Truth::False, "Preparing")));
    // Whoever waits for it is not answered before.
    assert!(waits.status.observed_generation < web().generation);
}

#[test]
fn what_waits_for_room_is_no_way_around_a_ceiling_that_is_enforced_now() {
    // Its spec asks for less memory by now, as the ceiling wants it, and for more cpu, for which there is no room.
    let ceilings = Ceilings { memory_mb: 256, ..Ceilings::NONE };
    let totals = Totals { cpu_percent: 400, ..Totals::default() };
    let allowed =
        |enforce| Allowed { ceilings: ceilings.clone(), totals, enforce, ..Allowed::default() };
    let mut new = spec();
    (new.limits.memory_mb, new.limits.cpu_percent) = (256, new.limits.cpu_percent + 100);
    let sandbox = Sandbox { generation: 2, spec: Arc::new(new), ..with(InstancePhase::Running) };
    let held = Promised::by(&Limits { cpu_percent: 400, ..Limits::NONE });
    let next = |enforce| {
        let policy = Policy { allowed: allowed(enforce), held, ..policy() };
        plan(&View::of(&sandbox, &RUNS, NOW, &policy)).next
    };
    assert!(matches!(next(Enforce::AtRestart), Next::Wait(_)));
    let Next::Do(Step::Stop(stopping)) = next(Enforce::Now) else { panic!() };
    assert_eq!(stopping.reason, StopReason::Policy);
}

#[test]
fn what_grows_in_place_waits_for_room_beside_what_others_still_hold() {
    let totals = Totals { memory_mb: 1024, ..Totals::default() };
    let allowed = Allowed { totals, ..Allowed::default() };
    let old = spec();
    let mut new = old.clone();
    new.limits.memory_mb = old.limits.memory_mb + 100;
    let sandbox =
        Sandbox { generation: 2, spec: Arc::new(new.clone()), ..with(InstancePhase::Running) };
    let beside = |others: u64| {
        let held =
            Promised::by(&Limits { memory_mb: others + old.limits.memory_mb, ..Limits::NONE });
        let policy = Policy { allowed: allowed.clone(), held, ..policy() };
        plan(&View::of(&sandbox, &RUNS, NOW, &policy))
    };
    let room = 1024 - new.limits.memory_mb;
    assert_eq!(beside(room).next, Next::Do(Step::Adjust));
    let waits = beside(room + 1);
    assert_eq!(waits.next, Next::Wait(NOW.after(LOOK_AT_USE)));
    assert!(waits.why.contains("1025 would be promised"), "{}", waits.why);
}

#[test]
fn however_short_a_pause_is_asked_for_it_is_waited_for_once() {
    let mut sandbox = ended(ExitKind::Exited { code: 0 });
    let mut short = spec();
    short.restart.policy = RestartPolicy::Always;
    (short.restart.backoff.initial, short.restart.backoff.max) = (Span(1), Span(1));
    sandbox.spec = Arc::new(short);
    sandbox.history.delay_ms = 1;
    sandbox.history.not_before = Some(NOW.after(Span(900)));
    let at = |now: Time| plan(&View::of(&sandbox, &GONE, now, &policy())).next;
    let first = at(NOW);
    assert_eq!(first, Next::Wait(NOW.after(Span(900))));
    assert_eq!(at(NOW.after(Span(1))), first, "or each look would be written down");
}
