//! Start, stop and adoption, in every order in which they can happen: one name, two incarnations, daemons
//! that die, freeze and follow one another, a shim beside each instance, and its workload.
//!
//! The simulation plays many long histories; this looks at all short ones. What is decided is decided by the
//! real [`sodium_model::plan::plan`]. What is done is broken into what is atomic, and between any two of these
//! everything else may happen. The order of deeds is copied from the executor, the drivers and the shim by
//! hand: who changes it there changes it here.
//!
//! ```text
//!   system: disk, daemons, shims, cgroups, orders on their way --action--> all that can follow, by stateright
//!                 |                                                          |
//!                row --Sandbox, Observed--> plan --first deed--> pass     promises: always, sometimes, at rest
//! ```

mod action;
mod hash;
mod machine;
mod order;
mod pass;
mod promises;
mod row;
mod system;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use action::Action;
use promises::{HARMLESS, PROMISES, Restful, SIGHTS, Statement};
use system::System;

/// A mistake that somebody could make. Each must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// The shim is ordered before the row says that it may exist.
    StartBeforeIntent,
    /// A lock that is held by somebody who does not answer is taken for a free one.
    UnknownIsDead,
    /// A free lock is believed, whatever is in the cgroup.
    OrphanIsDead,
    /// The cgroup is looked at before the lock.
    GroupBeforeLock,
    /// The lock is taken by the shim when it begins, and not handed to it.
    ShimWithoutLock,
    /// A daemon starts beside another.
    DaemonWithoutLock,
    /// The shim does not ask how old an order is.
    NoEpochFence,
    /// The shim tells the exit before it is on the disk.
    ExitToldEarly,
    /// A shim that is silent is waited for without end.
    EndlessPatience,
    /// A stop that was confirmed is recorded as an end.
    DeadWithoutProof,
    /// A shim that stopped before it noted itself in its lock is not looked for.
    NewbornUnseen,
}

/// How much may happen in one history.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    faults: u8,
    wishes: u8,
    /// Power failures among the faults.
    boots: u8,
    /// Daemons, if one starts beside another.
    epochs: u8,
    /// Whether daemons alone fail, and nobody else is ever late.
    prompt: bool,
}

/// The model, and what is asked of it.
#[derive(Debug)]
struct Protocol {
    bounds: Bounds,
    mistake: Option<Mistake>,
    promises: Vec<Statement>,
    /// Which of the sights somebody has had.
    seen: AtomicU32,
    restful: Restful,
    /// Whether a promise was found broken: the first of the shortest histories is enough.
    has_failed: AtomicBool,
}

/// A broken promise, and how it came to that.
type Found = Option<String>;

impl Protocol {
    fn within(bounds: Bounds) -> Self {
        let promises = PROMISES.to_vec();
        let (seen, restful, has_failed) = Default::default();
        Self { bounds, mistake: None, promises, seen, restful, has_failed }
    }

    /// With somebody's mistake in it, and asked for the promise alone that it breaks.
    fn with(self, mistake: Mistake, broken: &str) -> Self {
        let all = PROMISES.into_iter().chain([HARMLESS]);
        let promises = all.filter(|(name, _)| name.starts_with(broken)).collect();
        Self { mistake: Some(mistake), promises, ..self }
    }

    fn broken(&self, system: &System) -> Vec<&'static str> {
        let broken = self.promises.iter().filter(|(_, holds)| !holds(self, system));
        broken.map(|(name, _)| *name).collect()
    }

    fn holds(&self, system: &System) -> bool {
        self.has_failed.load(Ordering::Relaxed)
            || self.broken(system).is_empty()
            || self.has_failed.swap(true, Ordering::Relaxed)
    }

    /// Notes what of [`SIGHTS`] is there. True once everything was.
    fn look_out(&self, system: &System) -> bool {
        let mut seen = self.seen.load(Ordering::Relaxed);
        for (bit, (_, is_there)) in SIGHTS.iter().enumerate() {
            if seen & 1 << bit == 0 && is_there(self, system) {
                seen |= 1 << bit;
                self.seen.fetch_or(seen, Ordering::Relaxed);
            }
        }
        seen.count_ones() as usize == SIGHTS.len()
    }

    fn unseen(&self) -> Vec<&'static str> {
        let seen = self.seen.load(Ordering::Relaxed);
        let unseen = SIGHTS.iter().enumerate().filter(|(bit, _)| seen & 1 << bit == 0);
        unseen.map(|(_, (name, _))| *name).collect()
    }

    /// Looks at every state. What is broken comes with a shortest history, if one thread looks.
    #[expect(clippy::print_stdout, reason = "the figures of docs/reliability.md, with --nocapture")]
    fn check(self, threads: usize) -> (Found, Vec<&'static str>) {
        let (began, bounds, mistake) = (Instant::now(), self.bounds, self.mistake);
        let ends = HasDiscoveries::AnyFailures;
        let checker = self.checker().threads(threads).finish_when(ends).spawn_bfs().join();
        let (states, depth) = (checker.unique_state_count(), checker.max_depth());
        println!("{bounds:?} {mistake:?}: {states} states, depth {depth}, {:?}", began.elapsed());
        let found = checker.discoveries().remove(HOLDS).map(|path| {
            let broken = checker.model().broken(path.last_state());
            let story = story(path);
            format!("{broken:?} after {} things:\n{}", story.len(), story.join("\n"))
        });
        found.iter().for_each(|found| println!("{found}"));
        (found, checker.model().unseen())
    }
}

/// What stateright is asked: the promises in one question, since it pays for each question at each state.
const HOLDS: &str = "what is promised holds";

impl Model for Protocol {
    type State = System;
    type Action = Action;

    fn init_states(&self) -> Vec<System> {
        vec![System::new()]
    }

    fn actions(&self, system: &System, actions: &mut Vec<Action>) {
        self.own(system, actions);
        self.foreign(system, actions);
    }

    fn next_state(&self, system: &System, action: Action) -> Option<System> {
        let mut next = *system;
        action::happen(&mut next, action, self.mistake);
        (next != *system).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(HOLDS, Self::holds),
            Property::sometimes("everything worth it is seen", Self::look_out),
        ]
    }
}

fn number(variable: &str, otherwise: u8) -> u8 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// What happened, a line each.
fn story(path: Path<System, Action>) -> Vec<String> {
    let line = |(system, action): (System, Option<Action>)| match action {
        Some(Action::PassGoesOn(index)) => {
            let deed = system.daemons[index].pass.map(|pass| pass.next);
            deed.map(|deed| format!("  daemon {index}: {deed:?}"))
        }
        action => action.map(|action| format!("  {action:?}")),
    };
    path.into_vec().into_iter().filter_map(line).collect()
}

/// Any two faults and any two wishes, at any moment.
const SMALL: Bounds = Bounds { faults: 2, wishes: 2, boots: 1, epochs: 2, prompt: false };

/// With `FAULTS=3 WISHES=2` in the environment: more of them.
#[test]
fn every_order_of_things_holds_what_was_promised_and_comes_to_rest() {
    let (faults, wishes) = (number("FAULTS", SMALL.faults), number("WISHES", SMALL.wishes));
    let (found, unseen) = Protocol::within(Bounds { faults, wishes, ..SMALL }).check(2);
    assert!(found.is_none(), "{}", found.unwrap());
    // Less than that is not enough to see everything.
    let enough = faults >= SMALL.faults && wishes >= SMALL.wishes;
    assert!(!enough || unseen.is_empty(), "not seen: {unseen:?}");
}

#[test]
fn a_daemon_that_dies_ends_nothing() {
    let bounds = Bounds { faults: 3, wishes: 0, prompt: true, ..SMALL };
    let mut protocol = Protocol::within(bounds);
    protocol.promises.push(HARMLESS);
    let (found, _) = protocol.check(1);
    assert!(found.is_none(), "{}", found.unwrap());
}

#[track_caller]
fn finds(mistake: Mistake, promise: &str, (faults, wishes): (u8, u8)) {
    let prompt = promise.starts_with("S12");
    let bounds = Bounds { faults, wishes, prompt, ..SMALL };
    let protocol = Protocol::within(bounds).with(mistake, promise);
    let (found, _) = protocol.check(1);
    assert!(found.is_some(), "{mistake:?} does not break {promise}");
}

#[test]
fn every_mistake_is_found() {
    finds(Mistake::StartBeforeIntent, "S4", (1, 0));
    finds(Mistake::UnknownIsDead, "S5: what", (1, 0));
    finds(Mistake::OrphanIsDead, "S5: what", (1, 0));
    finds(Mistake::GroupBeforeLock, "S5: what", (1, 0));
    finds(Mistake::ShimWithoutLock, "S5: what", (1, 0));
    finds(Mistake::DaemonWithoutLock, "S1:", (1, 0));
    finds(Mistake::UnknownIsDead, "S12", (1, 0));
    finds(Mistake::NoEpochFence, "S13", (1, 1));
    finds(Mistake::ExitToldEarly, "S5: no", (2, 0));
    finds(Mistake::DeadWithoutProof, "S5: what", (0, 1));
    finds(Mistake::EndlessPatience, "L1", (1, 0));
}

#[test]
fn a_shim_that_stopped_before_it_noted_itself_would_be_waited_for_without_end() {
    finds(Mistake::NewbornUnseen, "L1", (1, 0));
}
