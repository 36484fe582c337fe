//! Namespaces and a root of its own for a process that nothing else confines.
//!
//! ```text
//!   shim --fork, new namespaces--> first process: mounts, new root, becomes the tenant's user, idles
//!     \\---fork, into its pid namespace--> workload: waits for the mounts, enters the rest, confines itself
//! ```
//! The workload is a child of the shim's, so that its end is seen as it was; when the first process is killed, nothing
//! of the pid namespace is left.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::child::{Failed, give_up};
use crate::launch::{Launch, Room, STAGE};
use sodium_sys::namespace::{self, Found, Network};
use sodium_sys::spawn::{self, Fork};
use sodium_sys::{SysError, mount, poll};

/// Links that programs expect among the devices.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "dev/ptmx"),
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// A room whose first process is there.
#[derive(Debug)]
pub(super) struct Opened {
    found: Found,
    /// Holds a byte once everything is mounted; broken, if that failed. The first process ends with whoever holds it.
    pub(super) ready: OwnedFd,
}

/// Forks the first process. Returns in the shim only.
pub(super) fn open(
    room: &Room,
    launch: &Launch,
    network: Option<&Network>,
    report: &OwnedFd,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Opened, SysError> {
    let (ready, tell) = poll::pipe()?;
    match spawn::fork_first(cgroup)? {
        Fork::Parent { pid } => Ok(Opened { found: Found::of(pid)?, ready }),
        Fork::Child => {
            drop(ready);
            match prepare(room, launch, network, tell) {
                Ok(()) => spawn::idle_forever(),
                Err(failed) => match report.try_clone() {
                    Ok(report) => give_up(report, failed),
                    Err(_) => spawn::exit_now(127),
                },
            }
        }
    }
}

/// In the first process.
fn prepare(
    room: &Room,
    launch: &Launch,
    network: Option<&Network>,
    tell: OwnedFd,
) -> Result<(), Failed> {
    launch.group.join_v1().map_err(|error| ("cgroup", error))?;
    spawn::reset_signals().map_err(|error| ("signals", error))?;
    network.map_or(Ok(()), Network::enter).map_err(|error| ("network", error))?;
    furnish(room).map_err(|error| ("mounts", error))?;
    namespace::set_hostname(&room.hostname).map_err(|error| ("hostname", error))?;
    let mut tell = File::from(tell);
    tell.write_all(b"1")
        .map_err(|source| ("mounts", SysError { call: "tell".to_owned(), source }))?;
    spawn::close_all_but(&[tell.as_fd()]).map_err(|error| ("descriptors", error))?;
    if let Some((uid, gid)) = launch.user {
        spawn::become_user(uid, gid).map_err(|error| ("user", error))?;
    }
    spawn::die_with_parent_behind(tell.as_fd()).map_err(|error| ("parent", error))?;
    // Nothing of the shim's is left in here but its memory, which nobody inside may look at.
    namespace::hide().map_err(|error| ("privileges", error))
}

fn furnish(room: &Room) -> Result<(), SysError> {
    let root = Path::new(STAGE);
    mount::keep_to_ourselves()?;
    mount::stage(root)?;
    for path in &room.read_only {
        mount::show_at(root, path)?;
    }
    for path in &room.devices {
        mount::device_at(root, path)?;
    }
    for dir in ["proc", "run", "var", "tmp"] {
        let dir = root.join(dir);
        std::fs::create_dir(&dir).map_err(|source| SysError::io("mkdir", &dir, source))?;
    }
    for (target, link) in DEVICE_LINKS.into_iter().chain([("/tmp", "var/tmp")]) {
        let link = root.join(link);
        std::os::unix::fs::symlink(target, &link)
            .map_err(|source| SysError::io("link", &link, source))?;
    }
    mount::terminals_at(root)?;
    mount::scratch_at(root, "/dev/shm")?;
    if !room.own.iter().any(|(_, at)| at == Path::new("/tmp")) {
        mount::scratch_at(root, "/tmp")?;
    }
    for (from, at) in &room.own {
        mount::tree_at(root, from, at)?;
    }
    mount::proc_at(&root.join("proc"))?;
    mount::become_root(root)
}

impl Opened {
    /// What `work` forks belongs in here; in the shim.
    pub(super) fn bear(
        &self,
        work: impl FnOnce() -> Result<Fork, SysError>,
    ) -> Result<Fork, SysError> {
        self.found.bear(work)
    }

    /// Leaves the host, with nothing of it in hand but `report`. In the child that was born in here.
    pub(super) fn enter(
        &self,
        network: Option<&Network>,
        report: &OwnedFd,
    ) -> Result<(), SysError> {
        let failed = |source| SysError { call: "wait for mounts".to_owned(), source };
        let mut ready = File::from(self.ready.try_clone().map_err(failed)?);
        // Broken: the first process has said why.
        ready.read_exact(&mut [0]).map_err(failed)?;
        drop(ready);
        network.map_or(Ok(()), Network::enter)?;
        self.found.enter()?;
        spawn::close_all_but(&[report.as_fd()])
    }
}
