//! The last changes, so that a watcher can go on from where it was.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::model::Sandbox;

/// Changes remembered. A watcher that is farther behind starts over with a list.
const CHANGE_COUNT_MAX: usize = 1024;

/// What happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One change, with the sandbox as it was after it; for a deletion, before it.
#[derive(Debug, Clone)]
pub struct Change {
    pub rv: u64,
    pub kind: ChangeKind,
    pub sandbox: Arc<Sandbox>,
}

/// A bounded stretch of changes without holes.
#[derive(Debug)]
pub struct Ring {
    changes: VecDeque<Change>,
    /// Everything after this number is remembered.
    complete_after: u64,
}

impl Ring {
    pub fn new(rv: u64) -> Self {
        Self { changes: VecDeque::new(), complete_after: rv }
    }

    pub fn extend(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
        while self.changes.len() > CHANGE_COUNT_MAX
            && let Some(dropped) = self.changes.pop_front()
        {
            self.complete_after = dropped.rv;
        }
    }

    /// All changes after `rv`; `None` when some of them are forgotten.
    pub fn since(&self, rv: u64) -> Option<Vec<Change>> {
        if rv < self.complete_after {
            return None;
        }
        let first = self.changes.partition_point(|change| change.rv <= rv);
        Some(self.changes.iter().skip(first).cloned().collect())
    }
}
