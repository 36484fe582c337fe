//! For tests: somebody who exchanges names while work goes on, as a tenant with a second process would.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Ends the exchange, whatever becomes of the work.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does the work while the names of each pair are exchanged without end. Returns how often they were.
pub(super) fn while_swapped(pairs: &[(PathBuf, PathBuf)], work: impl FnOnce()) -> usize {
    let (ended, exchanges) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    // Removed by now, or not made yet.
                    if renameat2(AT_FDCWD, one, AT_FDCWD, other, flags).is_ok() {
                        exchanges.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let _end = End(&ended);
        work();
    });
    exchanges.into_inner()
}
