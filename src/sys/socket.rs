//! Unix sockets and who is at their other end.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::sys::SysError;

/// The process that connected, or for a client the one that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub pid: u32,
    pub uid: u32,
}

/// Who is at the other end.
pub fn peer(socket: &UnixStream) -> Result<Peer, SysError> {
    let found = getsockopt(&socket.as_fd(), PeerCredentials)
        .map_err(|errno| SysError::nix("getsockopt(SO_PEERCRED)", errno))?;
    Ok(Peer { pid: found.pid().unsigned_abs(), uid: found.uid() })
}

/// Listens at `path` under a temporary name first, so that whoever finds the socket can connect.
pub fn listen(path: &Path) -> Result<UnixListener, SysError> {
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)
        .map_err(|source| SysError::io("bind", &temporary, source))?;
    listener.set_nonblocking(true).map_err(|source| SysError::io("listen", path, source))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&temporary, mode)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|source| SysError::io("publish", path, source))?;
    Ok(listener)
}
