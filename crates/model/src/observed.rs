//! What was seen of an instance. Deliberately not what is remembered: it is looked at anew in each
//! pass, and what could not be seen is *unknown*, which is not *dead*.

use crate::instance::ExitRecord;
use crate::time::Time;

/// One look at one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Proved: its lock is free, its cgroup is empty. With the exit, if one was written down; `began`,
    /// if there ever was a shim.
    Gone { exit: Option<ExitRecord>, began: bool },
    /// Its shim answers; the program does not run yet.
    Launching,
    /// Its shim answers; the program runs, or stands still where the kernel has frozen it.
    Running { pid: Option<u32>, started_at: Time, frozen: bool },
    /// Its shim answers; the end is on its way.
    Stopping { pid: Option<u32>, started_at: Option<Time> },
    /// Its shim answers; nothing of the workload is left, and the shim waits to be released.
    Exited { exit: ExitRecord },
    /// Its shim is dead and something still runs. It cannot be watched, so it must end.
    Orphan,
    /// Its lock is held and nobody answers. Nothing may be concluded from that.
    Unknown,
}
