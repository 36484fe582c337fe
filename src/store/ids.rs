//! Which id of the host's a new sandbox gets: one after the other, and none again before all were given, nor while
//! anything is left of whoever had it.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use sodium_model::IdRange;

/// Which of these ids anything on the host has, whoever was given them.
pub type Remains = Box<dyn Fn(&Range<u32>) -> BTreeSet<u32> + Send>;

/// How many were given of a range so far, those that were passed over included. Stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub(super) range: IdRange,
    pub(super) given: u64,
}

/// Where the next one comes from.
pub(super) struct Ids {
    range: IdRange,
    remains: Remains,
    /// What was there when this daemon gave its first.
    found: Option<BTreeSet<u32>>,
    /// Whether that was found before the transaction that is open.
    is_old: bool,
}

impl Ids {
    pub(super) fn new(range: IdRange, remains: Remains) -> Self {
        Self { range, remains, found: None, is_old: false }
    }

    /// Looks again at what is left on the host, before the next one is given. In the first round, nothing is in the way
    /// but what was there before us; afterwards, those that had them may have left something at any time. It is looked
    /// once for a whole transaction, which takes longer than all else that is done in it.
    pub(super) fn look_again(&mut self) {
        self.is_old = true;
    }

    /// The next one that is free. `None`: all are in use.
    pub(super) fn next(&mut self, cursor: &mut Cursor, used: &BTreeSet<u32>) -> Option<u32> {
        if cursor.range != self.range {
            *cursor = Cursor { range: self.range, given: 0 };
        }
        let users = self.range.users();
        let size = u64::from(users.end - users.start);
        if cursor.given >= size && std::mem::take(&mut self.is_old) {
            self.found = None;
        }
        let remains = &self.remains;
        let found = self.found.get_or_insert_with(|| remains(&users));
        for passed in 0..size {
            let at = u32::try_from((cursor.given + passed) % size).expect("less than the range");
            let id = users.start + at;
            if !used.contains(&id) && !found.contains(&id) {
                cursor.given += passed + 1;
                return Some(id);
            }
        }
        None
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.range.users().len()
    }
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Ids({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Sixteen in all: fifteen sandboxes.
    const RANGE: IdRange = IdRange { first: 100_000, count: 64 };

    #[test]
    fn none_is_given_again_before_all_were_nor_while_anything_is_left_of_it() {
        let left = Arc::new(Mutex::new(BTreeSet::from([100_002])));
        let seen = Arc::clone(&left);
        let mut ids = Ids::new(RANGE, Box::new(move |_| seen.lock().unwrap().clone()));
        let (mut cursor, mut used) = (Cursor::default(), BTreeSet::from([100_004]));
        let mut given = Vec::new();
        for _ in 0..13 {
            let id = ids.next(&mut cursor, &used).unwrap();
            // It goes at once, which is no reason to give it again.
            assert!(!given.contains(&id), "{id} of {given:?}");
            given.push(id);
        }
        assert!(!given.contains(&100_002) && !given.contains(&100_004), "{given:?}");
        assert_eq!((given[0], given[12]), (100_000, 100_014));
        // The second round. What has left something meanwhile is passed over.
        *left.lock().unwrap() = BTreeSet::from([100_000, 100_001]);
        ids.look_again();
        assert_eq!(ids.next(&mut cursor, &used), Some(100_002));
        // Another daemon goes on from there.
        let mut next = Ids::new(RANGE, Box::new(|_| BTreeSet::new()));
        assert_eq!(next.next(&mut cursor, &used), Some(100_003));
        used.extend(RANGE.users());
        assert_eq!(next.next(&mut cursor, &used), None);
        used.remove(&100_003);
        assert_eq!(next.next(&mut cursor, &used), Some(100_003), "the only one that is free");
        // Another range begins at its beginning.
        let mut moved =
            Ids::new(IdRange { first: 200_000, ..RANGE }, Box::new(|_| BTreeSet::new()));
        assert_eq!(moved.next(&mut cursor, &used), Some(200_000));
    }
}
