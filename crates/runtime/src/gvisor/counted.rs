//! How many cpus a guest counts.
//!
//! runsc gives its guest as many as its cgroup's cpuset has, and its kernel uses all that there are. Its real cgroups are
//! ours, and have no cpuset: what limits it is its quota. So it is shown a tree of cgroups that has nothing in it but a
//! cpuset of that size, and whose files it may write to without any effect.
//!
//! To have it count by being kept to so few cpus, and to give it all of them later, is no way: its kernel then takes
//! itself to be on one cpu with its guest, and every system call waits for a wake-up on another.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::runsc::Runsc;
use sodium_model::Limits;
use sodium_shim::launch::CGROUPS;
use sodium_sys::{SysError, spawn};

/// What it is told its cgroup is, wherever it looks for a controller's.
pub(crate) const CGROUP: &str = "/guest";
/// Where the trees lie in [`crate::rootfs::Shown::made`], each by its number of cpus.
const COUNTED_MADE: &str = "cpus";
/// The controllers that it does not do without.
const CONTROLLERS: [&str; 4] = ["blkio", "cpu", "cpuset", "memory"];
/// What the kernel has for none.
const NO_LIMIT: &str = "9223372036854771712\n";

/// The cpus that a guest is to count: its quota, rounded up. `None`: those that there are.
pub(crate) fn cpus(limits: &Limits) -> Option<u64> {
    let wanted = (limits.cpu_percent > 0).then(|| limits.cpu_percent.div_ceil(100))?;
    (wanted < spawn::cpus() && Path::new(CGROUPS).is_dir()).then_some(wanted)
}

impl Runsc {
    /// What it is to find at [`CGROUPS`], so that its guest counts these. Made once.
    pub(crate) fn counted(&self, cpus: u64) -> Result<PathBuf, SysError> {
        let all = self.shown.made.join(COUNTED_MADE);
        let tree = all.join(cpus.to_string());
        if tree.is_dir() {
            return Ok(tree);
        }
        // Two starts may be at it.
        let unfinished = all.join(format!("new-{}", uuid::Uuid::new_v4().simple()));
        let made = fill(&unfinished, cpus).and_then(|()| fs::rename(&unfinished, &tree));
        match made {
            Err(source) => {
                let _ = fs::remove_dir_all(&unfinished);
                if tree.is_dir() { Ok(tree) } else { Err(SysError::io("make", &tree, source)) }
            }
            Ok(()) => Ok(tree),
        }
    }
}

fn fill(tree: &Path, cpus: u64) -> io::Result<()> {
    for controller in CONTROLLERS {
        let group = tree.join(controller).join(CGROUP.trim_start_matches('/'));
        fs::create_dir_all(&group)?;
        symlink("/dev/null", group.join("cgroup.procs"))?;
        match controller {
            "cpuset" => fs::write(group.join("cpuset.cpus"), format!("0-{}\n", cpus - 1))?,
            "memory" => fs::write(group.join("memory.limit_in_bytes"), NO_LIMIT)?,
            _ => (),
        }
    }
    Ok(())
}
