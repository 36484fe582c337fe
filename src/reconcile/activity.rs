//! Since when a sandbox has been idle: nothing said, nothing heard, nothing run inside, and next to
//! nothing computed. It lives in memory alone: a daemon that has just started finds everything busy,
//! but for what it finds frozen.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use crate::model::{Iid, Span, Time};

/// Below this share of one cpu it computes nothing: gVisor's own kernel takes half of it.
const IDLE_CPU_PERCENT: u64 = 5;
/// A shorter stretch says nothing about the use of cpu.
const STRETCH_MS_MIN: u64 = 500;

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

#[derive(Debug)]
struct Mark {
    idle_since: Time,
    taken_at: Time,
    last: Look,
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
        let frozen = look.frozen;
        let mark = marks.entry(uid).or_insert_with(|| {
            // Frozen by a daemon before us, which knew why.
            let idle_since = if frozen { Time(0) } else { now };
            Mark { idle_since, taken_at: now, last: look.clone() }
        });
        let stretch = mark.taken_at.until(now);
        let awake = touched
            || look.busy
            || look.iid != mark.last.iid
            || look.console_next != mark.last.console_next;
        if awake {
            mark.idle_since = now;
        }
        // A part of the console's news may have come without any use of cpu, and the other way round.
        if awake || stretch.0 >= STRETCH_MS_MIN {
            if computed(mark.last.cpu_usec, look.cpu_usec, stretch) {
                mark.idle_since = now;
            }
            mark.taken_at = now;
            mark.last = look;
        }
        mark.idle_since
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Mark>> {
        self.marks.lock().expect("nobody panics while holding the marks")
    }

    fn touched(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.touched.lock().expect("nobody panics while holding the set")
    }
}

fn computed(before_usec: u64, after_usec: u64, stretch: Span) -> bool {
    let used = after_usec.saturating_sub(before_usec);
    stretch.0 > 0 && used > stretch.0 * 1000 * IDLE_CPU_PERCENT / 100
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
        // 2.4 % of a cpu is gVisor itself.
        assert_eq!(at(20, look(240_000, 0)), 10);
        // Said something; computed; was turned to.
        assert_eq!(at(30, look(480_000, 5)), 30);
        assert_eq!(at(40, look(5_000_000, 5)), 40);
        assert_eq!(at(50, look(5_000_000, 5)), 40);
        activity.touch(uid);
        assert_eq!(at(60, look(5_000_000, 5)), 60);
        assert_eq!(at(70, look(5_000_000, 5)), 60);
        assert_eq!(at(80, Look { busy: true, ..look(5_000_000, 5) }), 80);
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
