//! The last changes, so that a watcher can go on from where it was.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::Serialize;

use sodium_model::Sandbox;

/// Changes remembered. A watcher that is farther behind starts over with a list.
const CHANGE_COUNT_MAX: usize = 1024;
/// Of all of them together, as JSON: one that is large makes room for itself.
pub const CHANGES_BYTES_MAX: usize = 32 << 20;

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
    /// Each with its size.
    changes: VecDeque<(Change, usize)>,
    bytes: usize,
    /// Everything after this number is remembered.
    complete_after: u64,
}

impl Ring {
    pub fn new(rv: u64) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, complete_after: rv }
    }

    pub fn extend(&mut self, changes: Vec<Change>) {
        for change in changes {
            let bytes = size_of(&change.sandbox);
            self.bytes += bytes;
            self.changes.push_back((change, bytes));
        }
        while (self.changes.len() > CHANGE_COUNT_MAX || self.bytes > CHANGES_BYTES_MAX)
            && let Some((dropped, bytes)) = self.changes.pop_front()
        {
            self.bytes -= bytes;
            self.complete_after = dropped.rv;
        }
    }

    /// The size of all that are remembered.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All changes after `rv`; `None` when some of them are forgotten.
    pub fn since(&self, rv: u64) -> Option<Vec<Change>> {
        if rv < self.complete_after {
            return None;
        }
        let first = self.changes.partition_point(|(change, _)| change.rv <= rv);
        Some(self.changes.iter().skip(first).map(|(change, _)| change.clone()).collect())
    }
}

/// What of a sandbox can be large.
fn size_of(sandbox: &Sandbox) -> usize {
    let running = sandbox.instance.as_ref().map(|instance| size_of_json(&instance.spec));
    let declared = size_of_json(&*sandbox.spec) + size_of_json(&sandbox.labels);
    declared + size_of_json(&sandbox.history) + running.unwrap_or(0)
}

/// What it takes to write this, without writing it.
fn size_of_json(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // It counts as far as it comes.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}
