//! The real merge, store, planner and loop over a machine kept in memory, on which everything goes wrong.
//!
//! One seed is one history: people edit, files come and go, workloads end, and meanwhile daemons are
//! killed between any two steps, shims die or fall silent, numbers of processes are used again, clocks
//! jump, power fails. After each event [`checks`] holds what it sees against what must always be true;
//! then the faults stop, and everything must come to rest as it was declared. What a seed does follows
//! from the seed alone, so that a failure can be looked at again.
//!
//! ```text
//!   dice --> people, files, machine ---------\
//!     \----> points where a daemon may die --> daemon (pass by pass) --> checks --> rest, and stay there
//! ```

mod checks;
mod daemon;
mod dice;
mod directory;
mod history;
mod pauses;
mod scene;
mod sweep;
mod timers;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sodium_sys::fault::{self, Bug};

/// Histories in each run of the tests.
const SEEDS: u64 = 2_000;
/// A mistake must show within so many.
const SEEDS_TO_CATCH: u64 = 1_000;
/// How many, and from which on: `FIRST_SEED=13 SEEDS=1 cargo test --lib simulation`.
const SEEDS_VARIABLE: &str = "SEEDS";
const FIRST_SEED_VARIABLE: &str = "FIRST_SEED";

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// Runs seeds until one of them fails, and says which, and how.
fn run(first: u64, count: u64, bug: Option<Bug>) -> Option<(u64, String)> {
    let failed = |seed| {
        fault::set_bug(bug);
        let done = catch_unwind(AssertUnwindSafe(|| history::run(seed)));
        fault::set_bug(None);
        match done {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some((seed, why)),
            Err(panic) => Some((seed, text_of(&*panic))),
        }
    };
    (first..first + count).find_map(failed)
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic".to_owned())
}

/// A quarter of the histories each, so that the tests run beside each other.
fn quarter(index: u64) {
    let count = number(SEEDS_VARIABLE, SEEDS) / 4;
    let first = number(FIRST_SEED_VARIABLE, 1) + index * count;
    if let Some((seed, why)) = run(first, count.max(1), None) {
        panic!("seed {seed}: {why}\nagain: {FIRST_SEED_VARIABLE}={seed} {SEEDS_VARIABLE}=1");
    }
}

#[test]
fn histories_hold_what_was_promised_and_come_to_rest() {
    quarter(0);
}

#[test]
fn histories_of_the_second_quarter_do_too() {
    quarter(1);
}

#[test]
fn histories_of_the_third_quarter_do_too() {
    quarter(2);
}

#[test]
fn histories_of_the_last_quarter_do_too() {
    quarter(3);
}

#[test]
fn a_seed_tells_the_same_history_again() {
    for seed in [7, 77, 777] {
        assert_eq!(history::trace(seed), history::trace(seed), "seed {seed}");
    }
}

#[test]
fn every_mistake_is_found() {
    let bugs = [
        Bug::StartBeforeIntent,
        Bug::UnknownIsDead,
        Bug::ExitBeforeSync,
        Bug::LockInherited,
        Bug::LostRetry,
        Bug::StaleObservation,
        Bug::KillNotedPid,
        Bug::LostUpdate,
        Bug::ForgottenPause,
        Bug::AnswerBeforeCommit,
        Bug::EmptyMountBelieved,
        Bug::CleanUpBeforeRecord,
    ];
    for bug in bugs {
        let found = run(1, SEEDS_TO_CATCH, Some(bug));
        assert!(found.is_some(), "{bug:?} was not found");
    }
}
