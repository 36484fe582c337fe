//! The kernel, made safe. The only crate with `unsafe`, and the only one that imports `libc` or
//! `nix`. Every function is synchronous, does one thing, and names the call that failed. Nothing
//! here knows what a sandbox is.

#![allow(unsafe_code)] // The only crate that may.

pub mod attack;
pub mod beneath;
pub mod cgroup;
pub mod clock;
pub mod confined;
pub mod disk;
pub mod error;
pub mod fault;
pub mod graft;
pub mod ids;
pub mod landlock;
pub mod lock;
pub mod mount;
pub mod namespace;
pub mod own;
pub mod path;
pub mod poll;
pub mod port;
pub mod process;
pub mod pty;
pub mod seccomp;
pub mod service;
pub mod socket;
pub mod spawn;
#[cfg(test)]
mod swapped;
pub mod trial;
pub mod trust;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A system call failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}")]
pub struct SysError {
    /// The call, with the arguments that matter: `pidfd_open(4242)`.
    pub call: String,
    #[source]
    pub source: io::Error,
}

impl SysError {
    /// Names the call whose `errno` nix handed back.
    pub(crate) fn nix(call: impl Into<String>, errno: nix::Error) -> Self {
        Self { call: call.into(), source: io::Error::from_raw_os_error(errno as i32) }
    }

    /// Names the file operation that failed.
    pub fn io(verb: &str, path: &Path, source: io::Error) -> Self {
        Self { call: format!("{verb} {}", path.display()), source }
    }

    /// Names a raw call that has just failed.
    pub(crate) fn last(call: impl Into<String>) -> Self {
        Self { call: call.into(), source: io::Error::last_os_error() }
    }

    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Reads a file of /proc or a cgroup, which has no size and is made anew by each look at it.
pub(crate) fn read_small(path: &Path) -> io::Result<String> {
    /// What most of them fit into, so that one call reads them.
    const USUAL_BYTES: usize = 4096;
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    // Through `take`, because a bare read_to_end() asks for the size first.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Standard input, of which nothing is read that was not asked for.
pub fn unbuffered_stdin() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// A copy of a descriptor that we were handed at this number, to be closed by the next exec.
pub fn inherited(number: i32) -> Result<std::os::fd::OwnedFd, SysError> {
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::fd::{BorrowedFd, FromRawFd};
    // SAFETY: the number is used for the one call below only, which refuses one that is not open.
    let handed = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = fcntl(handed, FcntlArg::F_DUPFD_CLOEXEC(3))
        .map_err(|errno| SysError::nix(format!("fcntl({number}, F_DUPFD_CLOEXEC)"), errno))?;
    // SAFETY: fcntl succeeded, so `copy` is open; it was made just now, so nothing else owns it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(copy) })
}

/// A file in memory that holds these bytes, read from its beginning, and that nobody can change.
pub fn memory_file(bytes: &[u8]) -> Result<std::os::fd::OwnedFd, SysError> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek, Write};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create("sodium", flags).map_err(|errno| SysError::nix("memfd_create", errno))?;
    let mut file = File::from(fd);
    file.write_all(bytes)
        .and_then(|()| file.rewind())
        .map_err(|source| SysError { call: "write to memory".to_owned(), source })?;
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
        .map_err(|errno| SysError::nix("fcntl(F_ADD_SEALS)", errno))?;
    Ok(file.into())
}

/// Whether we run as root, and may therefore give each sandbox a uid of its own.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether we may pass limits of the kernel's and change the size of file systems in use: CAP_SYS_RESOURCE.
pub fn is_resource_admin() -> bool {
    const BIT: u64 = 24;
    let status = read_small(Path::new("/proc/self/status")).unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    held.is_some_and(|held| held >> BIT & 1 == 1)
}

/// Our own effective uid and gid, for sandboxes of a rootless daemon.
pub fn own_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}
