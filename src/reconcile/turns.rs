//! Turns to start: what takes more than a cpu to come up is started a few at a time. Two hundred kernels of gVisor that
//! are started at once keep each other, and the host, from getting anywhere.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::model::SandboxName;

/// So many for each cpu, and so many at least.
const FOR_EACH_CPU: usize = 2;
const COUNT_MIN: usize = 4;
/// Whoever takes longer is not waited for: a sandbox with a hundredth of a cpu keeps nobody from having his turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Turns {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has one, and since when.
    taken: HashMap<Uuid, Instant>,
    /// In the order in which they came.
    waiting: VecDeque<SandboxName>,
}

impl Default for Turns {
    fn default() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self::of((cpus * FOR_EACH_CPU).max(COUNT_MIN))
    }
}

impl Turns {
    fn of(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Whether it may be started now. If not, it is called when somebody gives a turn back.
    pub(super) fn take(&self, name: &SandboxName, uid: Uuid) -> bool {
        let mut state = self.lock();
        state.taken.retain(|_, since| since.elapsed() < TURN_TIME_MAX);
        if state.taken.len() >= self.most && !state.taken.contains_key(&uid) {
            if !state.waiting.contains(name) {
                state.waiting.push_back(name.clone());
            }
            return false;
        }
        state.taken.insert(uid, Instant::now());
        state.waiting.retain(|waiting| waiting != name);
        true
    }

    /// It runs, or never will. Returns who is next.
    pub(super) fn give_back(&self, uid: Uuid) -> Option<SandboxName> {
        let mut state = self.lock();
        state.taken.remove(&uid).and_then(|_| state.waiting.pop_front())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while taking turns")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_have_a_turn_and_the_others_theirs_in_the_order_in_which_they_came() {
        let turns = Turns::of(2);
        let [a, b, c, d] =
            ["a", "b", "c", "d"].map(|name| (SandboxName::try_from(name).unwrap(), Uuid::now_v7()));
        let take = |(name, uid): &(SandboxName, Uuid)| turns.take(name, *uid);
        assert_eq!([&a, &b, &c, &d].map(take), [true, true, false, false]);
        assert!(take(&a), "it has one");
        assert!(!take(&d) && !take(&c), "they wait on");
        assert_eq!(turns.give_back(a.1).as_ref(), Some(&c.0));
        assert_eq!(turns.give_back(a.1), None, "it had given it back");
        assert!(take(&c) && !take(&d));
        assert_eq!(turns.give_back(b.1).as_ref(), Some(&d.0));
        // Whoever takes too long is passed.
        assert!(take(&d) && !take(&a));
        let long_ago = Instant::now().checked_sub(TURN_TIME_MAX).unwrap();
        turns.lock().taken.values_mut().for_each(|since| *since = long_ago);
        assert!(take(&a));
    }
}
