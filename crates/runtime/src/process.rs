//! A plain process: the host's own programs, so only by explicit choice. It has a user of its own, no new
//! privileges, a clean environment, its limits, the system-call filter, and where the kernel has it Landlock. A
//! daemon that is root gives it a room of its own besides: its own pids, mounts, IPC, host name and network, and a
//! root in which there are the host's programs, its own files, and nothing else.

use std::path::{Path, PathBuf};

use crate::Order;
use crate::shown::{HOME, INIT, INIT_COPY};
use crate::workspace::Place;
use sodium_model::Network;
use sodium_shim::launch::Room;

/// The first process of a room counts against the limit on processes.
pub const OWN_PROCESSES: u64 = 1;

/// Read-only trees of the host that programs need.
pub const READ_ONLY: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/opt",
    "/proc",
    "/sys/devices/system/cpu",
];
/// Devices that harm nobody.
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/pts",
    "/dev/ptmx",
];

/// Those of both that a room has of its own instead.
const OWN_IN_ROOM: &[&str] = &["/proc", "/sys/devices/system/cpu", "/dev/pts", "/dev/ptmx"];

/// Trees the workload may read and run from.
pub fn read_only(init: &Path) -> Vec<PathBuf> {
    READ_ONLY.iter().map(PathBuf::from).chain([init.to_owned()]).collect()
}

/// Trees the workload may write to. Where it has no room, terminals are everybody's of the same user.
pub fn writable<'t>(trees: impl Iterator<Item = &'t Path>, in_room: bool) -> Vec<PathBuf> {
    let devices = DEVICES.iter().filter(|path| in_room || !OWN_IN_ROOM.contains(path));
    devices.map(PathBuf::from).chain(trees.map(Path::to_owned)).collect()
}

/// Where a sandbox finds its trees: in a room of its own where the daemon is root and can make one, else where they
/// lie on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub home: PathBuf,
    pub tmp: Option<PathBuf>,
    /// Memory to share, if that is nobody else's.
    pub shm: Option<PathBuf>,
    pub init: PathBuf,
}

impl View {
    /// Of whoever has a root of its own, by whatever runtime.
    pub fn inside() -> Self {
        let shm = Some("/dev/shm".into());
        Self { home: HOME.into(), tmp: Some("/tmp".into()), shm, init: INIT.into() }
    }

    /// Of a plain process without a room.
    pub fn on_host(files: &Path, tmp: Option<&Path>, made: &Path) -> Self {
        let init = made.join(INIT_COPY);
        Self { home: files.to_owned(), tmp: tmp.map(Path::to_owned), shm: None, init }
    }

    pub fn writable(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.home), self.tmp.as_ref(), self.shm.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// Its namespaces, and what is in its root.
pub fn room(order: &Order<'_>, place: &Place, made: &Path) -> Room {
    let of_host = |paths: &[&str]| {
        paths.iter().filter(|path| !OWN_IN_ROOM.contains(path)).map(PathBuf::from).collect()
    };
    let tmp = place.tmp.iter().map(|tmp| (tmp.clone(), "/tmp".into()));
    let home = [(place.files.clone(), HOME.into())];
    let init = is_probe(order).then(|| (made.join(INIT_COPY), INIT.into()));
    Room {
        read_only: of_host(READ_ONLY),
        devices: of_host(DEVICES),
        own: home.into_iter().chain(tmp).chain(init).collect(),
        hostname: order.name.to_string(),
        shares_network: order.spec.network == Network::Host,
    }
}

/// Whether it is the probe that is to run, which is no program of the host's.
fn is_probe(order: &Order<'_>) -> bool {
    order.spec.command.first().is_some_and(|program| program == INIT)
}

/// The program on the host: a path as it stands, a name by the sandbox's PATH.
pub fn program(order: &Order<'_>, search_path: &str, init: &Path) -> String {
    let command = order.spec.resolved_command();
    let name = command.first().cloned().unwrap_or_default();
    if name == INIT {
        return init.to_string_lossy().into_owned();
    }
    if name.contains('/') {
        return name;
    }
    let found =
        search_path.split(':').map(|dir| Path::new(dir).join(&name)).find(|path| path.is_file());
    // Left as it is, exec will say what is wrong with it.
    found.map_or(name, |path| path.to_string_lossy().into_owned())
}
