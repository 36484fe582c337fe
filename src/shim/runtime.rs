//! What is different when the program that we start is a runtime which starts the workload and
//! returns: runsc. The sandbox it leaves behind is handed to us, its sub-reaper.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::shim::launch::{Confinement, Launch};
use crate::sys::process::{self, Ended};
use crate::sys::{SysError, pty, socket, spawn};

/// Children that ended while the runtime had not told yet which one is the sandbox. There are some
/// dozens at most, each a stub of a guest that was over at once.
const STRAYS_MAX: usize = 4096;

/// The runtime, from its start until it returns.
#[derive(Debug)]
pub(super) struct Runtime {
    strays: Vec<(u32, Ended)>,
    /// Where the terminal is delivered.
    listener: Option<UnixListener>,
    /// Everything is kept to fewer cpus than there are, until the sandbox has counted them.
    is_narrow: bool,
}

/// Looks at whether the sandbox has counted the cpus: soon, then less often, since a start that takes
/// long takes long because of many others like it. There is no event for it.
pub(super) const COUNTED_MS_MIN: u64 = 3;
pub(super) const COUNTED_MS_MAX: u64 = 500;
/// Which the sandbox's process is given when it becomes what it stays.
const LAST_STAGE: &str = "--proc-mount-sync-fd=";

impl Runtime {
    /// Ready for what is about to be started, if that is a runtime.
    pub(super) fn expect(launch: &Launch) -> Result<Option<Self>, SysError> {
        let Confinement::Gvisor { console, cpus, .. } = &launch.confinement else {
            return Ok(None);
        };
        let listener = launch.tty.map(|_| listen_in_run_dir(console)).transpose()?;
        Ok(Some(Self { strays: Vec::new(), listener, is_narrow: cpus.is_some() }))
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.is_narrow
    }

    /// Gives everything all cpus as soon as the sandbox has counted those it is to have: a Go program
    /// counts them once, before its second thread. Its share of them is the cgroup's business.
    pub(super) fn widen_when_counted(&mut self, runtime: u32) {
        let family = process::children(runtime);
        let has_counted = |pid: &u32| {
            let arguments = process::arguments(*pid);
            arguments.first().is_some_and(|name| name == "runsc-sandbox")
                && arguments.iter().any(|word| word.starts_with(LAST_STAGE))
                && process::threads(*pid).len() > 1
        };
        if self.is_narrow && family.iter().any(has_counted) {
            self.is_narrow = false;
            for pid in family.into_iter().chain([runtime]) {
                spawn::widen_to_own_cpus(pid);
            }
        }
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
