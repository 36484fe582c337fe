//! Turns to start: what takes more than a cpu to come up is started a few at a time. Two hundred kernels of gVisor that
//! are started at once keep each other, and the host, from getting anywhere.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use sodium_model::SandboxName;

/// So many for each cpu, and so many at least.
const FOR_EACH_CPU: usize = 2;
const COUNT_MIN: usize = 4;
/// Whoever takes longer is not waited for: a sandbox with a hundredth of a cpu keeps nobody from having his turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(5);
/// Whoever has not asked for so long has no wish any more; all who wait ask once a second.
const WAITS_WITHOUT_ASKING: Duration = Duration::from_secs(5);
/// For people.
pub(super) const WAITS: &str =
    "it waits for its turn: no more gVisor sandboxes come up at once here";

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
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    name: SandboxName,
    uid: Uuid,
    asked: Instant,
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

    /// Whether it may be started now. If not, it keeps its place for as long as it asks.
    pub(super) fn take(&self, name: &SandboxName, uid: Uuid) -> bool {
        let mut state = self.lock();
        state.forget_late();
        if state.taken.contains_key(&uid) {
            return true;
        }
        let place = state.waiting.iter().position(|one| one.uid == uid);
        if place.unwrap_or(state.waiting.len()) < state.free(self.most) {
            place.and_then(|place| state.waiting.remove(place));
            state.taken.insert(uid, Instant::now());
            return true;
        }
        let asked = Instant::now();
        match place.and_then(|place| state.waiting.get_mut(place)) {
            Some(waiting) => waiting.asked = asked,
            None => state.waiting.push_back(Waiting { name: name.clone(), uid, asked }),
        }
        false
    }

    /// It runs, or never will. Returns who may be started now.
    pub(super) fn give_back(&self, uid: Uuid) -> Vec<SandboxName> {
        let mut state = self.lock();
        if state.taken.remove(&uid).is_none() {
            return Vec::new();
        }
        state.forget_late();
        let free = state.free(self.most);
        state.waiting.iter().take(free).map(|one| one.name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while taking turns")
    }
}

impl State {
    fn forget_late(&mut self) {
        self.taken.retain(|_, since| since.elapsed() < TURN_TIME_MAX);
        self.waiting.retain(|one| one.asked.elapsed() < WAITS_WITHOUT_ASKING);
    }

    fn free(&self, most: usize) -> usize {
        most.saturating_sub(self.taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_have_a_turn_and_the_others_theirs_in_the_order_in_which_they_came() {
        let turns = Turns::of(2);
        let [a, b, c, d, e] = ["a", "b", "c", "d", "e"]
            .map(|name| (SandboxName::try_from(name).unwrap(), Uuid::now_v7()));
        let take = |(name, uid): &(SandboxName, Uuid)| turns.take(name, *uid);
        let called =
            |uid| -> Vec<String> { turns.give_back(uid).iter().map(ToString::to_string).collect() };
        assert_eq!([&a, &b, &c, &d].map(take), [true, true, false, false]);
        assert!(take(&a), "it has one");
        assert!(!take(&d) && !take(&c), "they wait on");
        assert_eq!(called(a.1), ["c"]);
        assert_eq!(called(a.1), [""; 0], "it had given it back");
        // Nobody who asks meanwhile is before whom it is called.
        assert!(!take(&e) && !take(&d));
        assert!(take(&c) && !take(&d));
        assert_eq!(called(b.1), ["d"]);
        // Whoever does not ask any more is passed,
        let long_ago = Instant::now().checked_sub(TURN_TIME_MAX).unwrap();
        turns.lock().waiting[0].asked = long_ago;
        assert!(take(&e));
        assert!(!take(&a));
        // and so is whoever takes too long.
        turns.lock().taken.values_mut().for_each(|since| *since = long_ago);
        assert!(take(&a));
    }
}
