//! Mounts that only this process and what it starts can see.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::sys::SysError;

/// A mount namespace of our own, out of which nothing spreads to the host's.
pub fn private_namespace() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| SysError::nix("unshare(CLONE_NEWNS)", errno))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| SysError::nix("mount(MS_SLAVE, /)", errno))
}

/// Makes `at` show what is at `from`.
pub fn bind(from: &Path, at: &Path) -> Result<(), SysError> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        SysError::nix(format!("bind {} at {}", from.display(), at.display()), errno)
    })
}

/// A /proc of this pid namespace at another place.
pub fn proc_at(at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), at, Some("proc"), flags, None::<&str>)
        .map_err(|errno| SysError::nix(format!("mount proc at {}", at.display()), errno))
}
