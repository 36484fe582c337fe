//! Instances whose shim is of a release that shares no version of the protocol with ours. It lives, and does
//! its work; but it cannot be asked anything. What lock, cgroup and exit record say is all that is known, and
//! what has to be done is asked of the kernel.

use std::fs;
use std::os::fd::AsFd;
use std::time::UNIX_EPOCH;

use crate::supervise::{Supervisor, convert};
use crate::{DriverError, StopOrder};
use sodium_model::{Iid, Observed, Time};
use sodium_shim::exit;
use sodium_shim::launch::LOCK;
use sodium_sys::process;

impl Supervisor {
    pub(crate) fn observe_foreign(&self, iid: &Iid) -> Observed {
        let group = self.host.group(iid);
        if group.is_populated() {
            let made = fs::metadata(self.host.run_dir(iid)).and_then(|meta| meta.modified()).ok();
            let since = made.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            let started_at = Time(u64::try_from(since.as_millis()).unwrap_or(0));
            return Observed::Running { pid: None, started_at, frozen: group.is_frozen() };
        }
        // Written once everything has ended; until then it is at that.
        match exit::load(&self.host.exit_path(iid)) {
            Some(exit) => Observed::Exited { exit: self.exit(exit, iid) },
            None => Observed::Stopping { pid: None, started_at: None },
        }
    }

    /// With grace, the first process is asked to end, as far as it can be told from the others. Nobody kills what
    /// does not obey, until that is asked for.
    pub(crate) fn stop_foreign(&self, iid: &Iid, how: &StopOrder<'_>) -> Result<(), DriverError> {
        let host = |source| DriverError::Host { stage: "stop", source };
        let group = self.host.group(iid);
        if how.force {
            return group.kill().map_err(host);
        }
        for pid in group.pids() {
            let Ok(pidfd) = process::open_pidfd(pid) else { continue };
            // Looked at again behind the handle: by then the number may be somebody else's.
            if group.holds(pid) && self.runtime.is_first(pid) {
                let signal = convert::signal_number(how.signal);
                process::signal(pidfd.as_fd(), signal).map_err(host)?;
            }
        }
        Ok(())
    }

    /// Ends the shim, which has nothing to do any more.
    pub(crate) fn release_foreign(&self, iid: &Iid) -> Result<(), DriverError> {
        let host = |source| DriverError::Host { stage: "release shim", source };
        let own = self.host.run_dir(&self.host.known_as(iid));
        convert::kill_holder(&self.host.run_dir(iid).join(LOCK), &own).map_err(host)?;
        self.wait_released(iid)
    }
}
