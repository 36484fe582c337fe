//! The fork server: one process per daemon, out of which every shim is forked, and every program that
//! is run inside what runs.
//!
//! A fork takes a tenth of the time of starting a program, and shims that come from one process share
//! what none of them writes. It has one thread, holds nothing of any instance once the shim is forked,
//! and ends with its daemon, which no shim does.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::launch::HELPERS;
use sodium_sys::error::chain;
use sodium_sys::namespace::Network;
use sodium_sys::spawn::{self, Fork};
use sodium_sys::{self as sys, SysError, cgroup, poll, process, socket};

/// Longest path of a run directory.
const PATH_BYTES_MAX: usize = 4096;

/// Nothing was ordered for so long: then there is time to make what the next one needs.
const IDLE_MS: u16 = 20;

/// What the daemon hands over in one message, a path and one or two descriptors.
#[derive(Debug)]
pub(super) enum Assignment {
    Instance(InstanceDuty),
    Exec(ExecDuty),
}

/// To be the shim of an instance.
#[derive(Debug)]
pub(super) struct InstanceDuty {
    pub run_dir: PathBuf,
    /// Whoever ordered the instance follows it here from the first moment.
    pub control: UnixStream,
    /// Held from before the shim's birth, so that no one could think it free in between.
    pub lock: OwnedFd,
    /// Made while there was nothing else to do.
    pub network: Option<Network>,
}

/// To run one program inside what runs, for as long as somebody is at the other end.
#[derive(Debug)]
pub(super) struct ExecDuty {
    /// The file with the order.
    pub order: PathBuf,
    pub control: UnixStream,
}

/// Forks a process for each message on standard input. Returns in each with its assignment, and in the
/// server with `None`, when the daemon is gone.
pub(super) fn serve() -> Result<Option<Assignment>, SysError> {
    // Fails only for a group leader, which then is a leader already.
    let _ = spawn::new_session();
    spawn::close_from(3)?;
    let orders = take_standard_input()?;
    spawn::cloexec_from(3)?;
    process::reap_unseen(true)?;
    let mut buffer = [0; PATH_BYTES_MAX];
    let mut network = None;
    loop {
        // A start that is on its way has the cpus to itself.
        let wants = network.is_none() && sys::is_root();
        if wants && !poll::is_readable_within(orders.as_fd(), IDLE_MS)? {
            network = Network::make().ok();
        }
        let (count, fds) = socket::receive_with_fds(orders.as_fd(), &mut buffer)?;
        if count == 0 {
            return Ok(None);
        }
        let mut fds = fds.into_iter();
        let (Some(control), lock) = (fds.next(), fds.next()) else { continue };
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&buffer[..count]));
        let run_dir = if lock.is_some() { Some(path.as_path()) } else { path.parent() };
        let helpers = run_dir.and_then(helpers_of);
        match spawn::fork_into(helpers.as_ref().map(AsFd::as_fd)) {
            Ok(Fork::Parent { .. }) if lock.is_some() => network = None,
            Ok(Fork::Parent { .. }) => (),
            Ok(Fork::Child) => {
                drop(helpers);
                process::reap_unseen(false)?;
                let control = control.into();
                return Ok(Some(match lock {
                    Some(lock) => {
                        Assignment::Instance(InstanceDuty { run_dir: path, control, lock, network })
                    }
                    None => Assignment::Exec(ExecDuty { order: path, control }),
                }));
            }
            // The lock and the socket are closed here, which says that there is no shim.
            Err(error) => super::complain(&chain(&error)),
        }
    }
}

/// The group to be born in, so that what helps an instance is charged to it. `None` where there is no version 2, and
/// for an instance of an earlier release.
fn helpers_of(run_dir: &Path) -> Option<OwnedFd> {
    cgroup::open(&run_dir.join(HELPERS)).ok()
}

/// Standard input is our end of a socket. It moves away, so that nothing mistakes it for input.
fn take_standard_input() -> Result<OwnedFd, SysError> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| SysError::io("open", Path::new("/dev/null"), source))?;
    let copied = std::io::stdin().as_fd().try_clone_to_owned();
    let copied = copied.map_err(|source| SysError { call: "dup(0)".to_owned(), source })?;
    for number in [0, 1] {
        spawn::place_fd(null.as_fd(), number)?;
    }
    Ok(copied)
}
