//! For tests: somebody who exchanges names while work goes on, as a tenant with a second process would.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Ends the exchange, whatever becomes of the work.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does the work while the names of each pair are exchanged without end.
pub(super) fn while_swapped(pairs: &[(PathBuf, PathBuf)], work: impl FnOnce()) {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    // Removed by now, or not made yet.
                    let _ = renameat2(AT_FDCWD, one, AT_FDCWD, other, flags);
                }
            }
        });
        let _end = End(&ended);
        work();
    });
}
