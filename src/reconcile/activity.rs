//! Since when a sandbox has been idle: nothing said, nothing heard, nothing run inside, and next to
//! nothing computed. It lives in memory alone: a daemon that has just started finds everything busy,
//! but for what it finds frozen.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use sodium_model::{Iid, Span, Time};

/// Below this share of one cpu a workload computes nothing: what is left are timers that come to nothing.
/// It is low because a machine that is too busy gives a workload no more.
const IDLE_CPU_PER_MILLE: u64 = 2;
/// And this much is what measuring it may be wrong by.
const IDLE_CPU_USEC: u64 = 4_000;

/// What is known of all.
#[derive(Debug, Default)]
pub struct Activity {
    marks: Mutex<HashMap<Uuid, Mark>>,
    touched: Mutex<HashSet<Uuid>>,
}

/// What one look at an instance has found.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub iid: Iid,
    pub frozen: bool,
    /// Somebody runs something inside.
    pub busy: bool,
    pub cpu_usec: u64,
    pub console_next: u64,
}

/// The last time it was not idle, and what there was to see then.
#[derive(Debug)]
struct Mark {
    at: Time,
    then: Look,
}

impl Activity {
    /// Somebody has turned to this sandbox.
    pub fn touch(&self, uid: Uuid) {
        self.touched().insert(uid);
    }

    pub(super) fn forget(&self, uid: Uuid) {
        self.lock().remove(&uid);
        self.touched().remove(&uid);
    }

    /// Since when it is idle, after this look.
    pub(super) fn idle_since(&self, uid: Uuid, look: Look, now: Time) -> Time {
        let touched = self.touched().remove(&uid);
        let mut marks = self.lock();
        let mark = marks.entry(uid).or_insert_with(|| {
            // Frozen by a daemon before us, which knew why.
            Mark { at: if look.frozen { Time(0) } else { now }, then: look.clone() }
        });
        let then = &mark.then;
        let awake = touched
            || look.busy
            || look.iid != then.iid
            || look.console_next != then.console_next
            || computed(look.cpu_usec.saturating_sub(then.cpu_usec), mark.at.until(now));
        if awake {
            *mark = Mark { at: now, then: look };
        }
        mark.at
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Mark>> {
        self.marks.lock().expect("nobody panics while holding the marks")
    }

    fn touched(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.touched.lock().expect("nobody panics while holding the set")
    }
}

fn computed(used_usec: u64, span: Span) -> bool {
    used_usec > span.0 * IDLE_CPU_PER_MILLE + IDLE_CPU_USEC
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(cpu_usec: u64, console_next: u64) -> Look {
        let iid = Iid::new(Uuid::nil(), 1);
        Look { iid, frozen: false, busy: false, cpu_usec, console_next }
    }

    #[test]
    fn it_is_idle_since_it_last_did_anything() {
        let (activity, uid) = (Activity::default(), Uuid::nil());
        let at = |seconds: u64, look: Look| {
            activity.idle_since(uid, look, Time(seconds * 1000)).0 / 1000
        };
        assert_eq!(at(10, look(0, 0)), 10);
        // A timer that came to nothing.
        assert_eq!(at(20, look(10_000, 0)), 10);
        // Said something; computed; was turned to.
        assert_eq!(at(30, look(20_000, 5)), 30);
        assert_eq!(at(40, look(90_000, 5)), 40);
        assert_eq!(at(50, look(90_000, 5)), 40);
        activity.touch(uid);
        assert_eq!(at(60, look(90_000, 5)), 60);
        assert_eq!(at(70, look(90_000, 5)), 60);
        assert_eq!(at(80, Look { busy: true, ..look(90_000, 5) }), 80);
        let next = Look { iid: Iid::new(uid, 2), ..look(0, 5) };
        assert_eq!(at(90, next.clone()), 90);
        assert_eq!(at(100, next), 90);
    }

    #[test]
    fn what_is_found_frozen_stays_so() {
        let found = Look { frozen: true, ..look(7, 7) };
        assert_eq!(Activity::default().idle_since(Uuid::nil(), found, Time(9_000)), Time(0));
    }
}
