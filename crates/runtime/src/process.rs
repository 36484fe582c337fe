//! A plain process: the host's own programs, so only by explicit choice. It has a user of its own, no new
//! privileges, a clean environment, its limits, the system-call filter, and where the kernel has it Landlock. A
//! daemon that is root gives it a room of its own besides: its own pids, mounts, IPC, host name and network, and a
//! root in which there are the host's programs, its own files, and nothing else.

use std::path::{Path, PathBuf};

use crate::rootfs::{self, HOME, INIT, INIT_COPY, MADE};
use crate::runtime::{Enter, Entered, Prepared, Role, Runtime, Start};
use crate::storage::workspace::Place;
use crate::supervise::SEARCH_PATH;
use crate::supervise::host::Host;
use crate::supervise::ledger::Counting;
use crate::{DriverError, Order};
use sodium_model::{Iid, Isolation, Network};
use sodium_shim::exec::order::{OfRoom, Way};
use sodium_shim::launch::{Confinement, Room};
use sodium_sys::is_root;

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

/// A plain process.
#[derive(Debug)]
pub(crate) struct Process;

impl Process {
    pub(crate) fn new(host: &Host) -> Self {
        // Without it, `prove` says that there is no such program.
        let _ = rootfs::add_init(&host.paths.run, &host.paths.shim);
        Self
    }
}

impl Runtime for Process {
    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn version(&self) -> Result<String, String> {
        Ok("none (host process)".to_owned())
    }

    fn counting(&self) -> Counting {
        Counting::Host { own: if is_root() { OWN_PROCESSES } else { 0 } }
    }

    fn view(&self, host: &Host, files: &Path, tmp: Option<&Path>) -> View {
        if is_root() { View::inside() } else { View::on_host(files, tmp, &made(host)) }
    }

    fn view_of(&self, host: &Host, iid: &Iid, files: &Path, tmp: Option<&Path>) -> View {
        if has_room(host, iid) { View::inside() } else { View::on_host(files, tmp, &made(host)) }
    }

    fn prepare(&self, start: &Start<'_>) -> Result<Prepared, DriverError> {
        let (order, place, made) = (start.order, start.own_files()?, made(start.host));
        let view = self.view(start.host, &place.files, place.tmp.as_deref());
        let confinement = Confinement::Itself {
            read_only: read_only(&view.init),
            writable: writable(view.writable(), is_root()),
            without_tcp: !is_root() && order.spec.network == Network::None,
            room: is_root().then(|| room(order, place, &made)),
        };
        Ok(Prepared {
            program: program(order, SEARCH_PATH, &view.init),
            args: order.spec.resolved_command(),
            confinement,
            role: Role::Workload,
            files: Vec::new(),
        })
    }

    fn enter(&self, enter: Enter<'_>) -> Result<Entered, DriverError> {
        let Enter { pid, order, view, confined, .. } = enter;
        // Found out once: whoever sees what is inside is to be inside.
        let in_room = *view == View::inside();
        let way = Way::Beside {
            confined,
            read_only: read_only(&view.init),
            writable: writable(view.writable(), in_room),
            without_tcp: !in_room && order.spec.network == Network::None,
            room: in_room
                .then_some(OfRoom { pid, shares_network: order.spec.network == Network::Host }),
        };
        Ok(Entered { way, env: enter.env })
    }

    fn is_first(&self, _: u32) -> bool {
        true
    }
}

/// Where the files lie that are made for sandboxes.
fn made(host: &Host) -> PathBuf {
    host.paths.run.join(MADE)
}

/// Whether it runs in a room: one that an earlier release started has none. Of which nothing can be read, nobody is run
/// outside of one.
fn has_room(host: &Host, iid: &Iid) -> bool {
    let launch = host.launch(iid);
    launch.is_none_or(|launch| {
        matches!(launch.confinement, Confinement::Itself { room: Some(_), .. })
    })
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
