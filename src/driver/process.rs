//! A plain process: no namespaces, so only by explicit choice. It has a user of its own, no new
//! privileges, a clean environment, its limits, and where the kernel has them Landlock and the
//! system-call filter.

use std::path::{Path, PathBuf};

use crate::driver::Order;
use crate::driver::shown::{INIT, INIT_COPY};

/// Read-only trees of the host that programs need.
const READ_ONLY: &[&str] = &[
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

/// Trees the workload may read and run from.
pub fn read_only(made: &Path) -> Vec<PathBuf> {
    READ_ONLY.iter().map(PathBuf::from).chain([made.join(INIT_COPY)]).collect()
}

/// Trees the workload may write to.
pub fn writable<'t>(trees: impl Iterator<Item = &'t Path>) -> Vec<PathBuf> {
    let devices = DEVICES.iter().map(PathBuf::from);
    devices.chain(trees.map(Path::to_owned)).collect()
}

/// The program on the host: a path as it stands, a name by the sandbox's PATH.
pub fn program(order: &Order<'_>, search_path: &str, made: &Path) -> String {
    let command = order.spec.resolved_command();
    let name = command.first().cloned().unwrap_or_default();
    if name == INIT {
        return made.join(INIT_COPY).to_string_lossy().into_owned();
    }
    if name.contains('/') {
        return name;
    }
    let found =
        search_path.split(':').map(|dir| Path::new(dir).join(&name)).find(|path| path.is_file());
    // Left as it is, exec will say what is wrong with it.
    found.map_or(name, |path| path.to_string_lossy().into_owned())
}
