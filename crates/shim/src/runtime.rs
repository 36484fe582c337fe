//! What is different when the program that we start is a runtime which starts the workload and
//! returns: runsc. The sandbox it leaves behind is handed to us, its sub-reaper.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::launch::{Confinement, Launch};
use sodium_sys::cgroup::Group;
use sodium_sys::process::{self, Ended};
use sodium_sys::{SysError, pty, socket};

/// Children that ended while the runtime had not told yet which one is the sandbox. There are some
/// dozens at most, each a stub of a guest that was over at once.
const STRAYS_MAX: usize = 4096;

/// The runtime, from its start until it returns.
#[derive(Debug)]
pub(super) struct Runtime {
    strays: Vec<(u32, Ended)>,
    /// Where the terminal is delivered.
    listener: Option<UnixListener>,
}

/// When the timers of what runs are let be late: not while it starts, which that would make half as long again.
#[derive(Debug)]
pub(super) struct Slack {
    nanoseconds: u64,
    at_boot_ms: Option<u64>,
}

/// Nothing that starts is still waited for by then.
const SLACK_AFTER_MS: u64 = 3_000;

impl Slack {
    pub(super) fn of(confinement: &Confinement) -> Self {
        let nanoseconds = match confinement {
            Confinement::Gvisor { timer_slack_ns, .. } => *timer_slack_ns,
            Confinement::Bubblewrap { .. } | Confinement::Itself { .. } => 0,
        };
        Self { nanoseconds, at_boot_ms: None }
    }

    /// It runs from now on.
    pub(super) fn begin(&mut self, now: u64) {
        self.at_boot_ms = (self.nanoseconds > 0).then_some(now + SLACK_AFTER_MS);
    }

    pub(super) fn due(&self) -> Option<u64> {
        self.at_boot_ms
    }

    pub(super) fn apply_when_due(&mut self, now: u64, group: &Group) {
        if self.at_boot_ms.is_some_and(|at| at <= now) {
            self.at_boot_ms = None;
            for pid in group.pids() {
                process::slacken_timers(pid, self.nanoseconds);
            }
        }
    }
}

impl Runtime {
    /// Ready for what is about to be started, if that is a runtime.
    pub(super) fn expect(launch: &Launch) -> Result<Option<Self>, SysError> {
        let Confinement::Gvisor { console, .. } = &launch.confinement else {
            return Ok(None);
        };
        let listener = launch.tty.map(|_| listen_in_run_dir(console)).transpose()?;
        Ok(Some(Self { strays: Vec::new(), listener }))
    }

    /// A child ended that is not the runtime itself.
    pub(super) fn note(&mut self, pid: u32, ended: Ended) {
        if self.strays.len() < STRAYS_MAX {
            self.strays.push((pid, ended));
        }
    }

    /// Which process the sandbox is, and how it ended if it has.
    pub(super) fn sandbox(&self, pid_file: &Path) -> Option<(u32, Option<Ended>)> {
        let pid: u32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let ended = self.strays.iter().find(|(stray, _)| *stray == pid).map(|(_, ended)| *ended);
        Some((pid, ended))
    }

    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Takes the terminal that was delivered, and sizes it. It comes once.
    pub(super) fn take_terminal(&mut self, size: (u16, u16)) -> Option<OwnedFd> {
        // Nobody there yet: the next wake-up tells.
        let (stream, _) = self.listener.as_ref()?.accept().ok()?;
        let mut name = [0; 256];
        let (_, fds) = socket::receive_with_fds(stream.as_fd(), &mut name).ok()?;
        let master = fds.into_iter().next()?;
        self.listener = None;
        // A terminal without a size is a terminal all the same.
        let _ = pty::resize(master.as_fd(), size.0, size.1);
        Some(master)
    }
}

/// We are in the run directory, where names are short; paths of sockets may not be long.
fn listen_in_run_dir(path: &Path) -> Result<UnixListener, SysError> {
    let name = path.file_name().map_or(path, Path::new);
    socket::listen(name)
}

/// What runsc's complaint comes down to: it names every function it passed through.
pub(super) fn essence(line: &str) -> &str {
    const CHAIN: &[&str] = &[
        "running container: ",
        "creating container: ",
        "starting container: ",
        "starting root container: ",
        "starting sandbox: ",
        "cannot create sandbox: ",
    ];
    let mut rest = line;
    while let Some(shorter) = CHAIN.iter().find_map(|prefix| rest.strip_prefix(prefix)) {
        rest = shorter;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_comes_down_to_its_cause() {
        let line = "running container: starting container: starting root container: starting \
            sandbox: error finding executable \"x\"";
        assert_eq!(essence(line), "error finding executable \"x\"");
        assert_eq!(essence("no such file"), "no such file");
    }
}
