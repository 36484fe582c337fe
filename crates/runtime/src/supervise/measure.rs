//! What instances use. One that has computed nothing since it was last measured uses what it did then: so a thousand
//! that do nothing are asked for one number each.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use sodium_model::Iid;
use sodium_sys::cgroup::{Group, Usage};
use sodium_sys::clock;

/// The kernel may take memory back from what does nothing: after this, everything is read again.
const FRESH_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub(crate) struct Measures(Mutex<HashMap<Iid, Measure>>);

#[derive(Debug, Clone, Copy)]
struct Measure {
    at_ms: u64,
    usage: Usage,
}

impl Measures {
    pub(crate) fn usage(&self, iid: &Iid, group: &Group) -> Usage {
        let (now, cpu_usec) = (clock::boot_ms(), group.cpu_usec());
        let last = self.lock().get(iid).copied();
        // Of nothing that is there, nothing is known.
        let same = |last: &Measure| cpu_usec > 0 && last.usage.cpu_usec == cpu_usec;
        if let Some(last) = last.filter(|last| same(last) && last.at_ms + FRESH_MS > now) {
            return last.usage;
        }
        let usage = group.usage();
        if usage.cpu_usec > 0 {
            self.lock().insert(iid.clone(), Measure { at_ms: now, usage });
        }
        usage
    }

    pub(crate) fn forget(&self, iid: &Iid) {
        self.lock().remove(iid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Iid, Measure>> {
        self.0.lock().expect("nobody panics while measuring")
    }
}
