//! Unix sockets and who is at their other end.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, bind, getsockopt, listen as start_listening, recvmsg, sendmsg, socket, socketpair,
};
use nix::sys::stat::{Mode, fchmod};

use crate::SysError;

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

/// Has the kernel end a connection whose peer has taken nothing for so long, though there was something for
/// it (TCP_USER_TIMEOUT).
pub fn give_up_after(socket: &impl AsFd, time: Duration) -> Result<(), SysError> {
    let milliseconds = libc::c_uint::try_from(time.as_millis()).unwrap_or(libc::c_uint::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&milliseconds)).expect("four bytes");
    // SAFETY: the option takes an unsigned int of the length passed, which outlives the call; the
    // descriptor is open for its duration.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const milliseconds).cast(),
            length,
        )
    };
    if ret == 0 { Ok(()) } else { Err(SysError::last("setsockopt(TCP_USER_TIMEOUT)")) }
}

/// Finds out within a minute that a peer has vanished, though nobody says anything.
pub fn keep_alive(socket: &impl AsFd) -> Result<(), SysError> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
    ];
    for (level, option, value) in options {
        let value: libc::c_int = value;
        let length = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
        // SAFETY: each option takes an int of the length passed, which outlives the call; the descriptor is open for
        // its duration.
        let ret = unsafe {
            let fd = socket.as_fd().as_raw_fd();
            libc::setsockopt(fd, level, option, (&raw const value).cast(), length)
        };
        if ret < 0 {
            return Err(SysError::last("setsockopt(keepalive)"));
        }
    }
    Ok(())
}

/// The process that connected, as long as it is there. `Ok(None)`: this kernel does not say; an error: it has ended.
pub fn peer_process(socket: &impl AsFd) -> Result<Option<OwnedFd>, SysError> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of_val(&fd)).expect("four bytes");
    // SAFETY: the option gives an int, for which there is room; both outlive the call.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if ret < 0 {
        let error = SysError::last("getsockopt(SO_PEERPIDFD)");
        let is_unknown = error.source.raw_os_error() == Some(libc::ENOPROTOOPT);
        return if is_unknown { Ok(None) } else { Err(error) };
    }
    // SAFETY: the call succeeded, so `fd` is a descriptor made just now, which nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Two ends over which messages stay apart, each with its own descriptors.
pub fn packets() -> Result<(OwnedFd, OwnedFd), SysError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(|errno| SysError::nix("socketpair", errno))
}

/// Sends bytes and descriptors together: whoever takes the bytes has the descriptors, and until then
/// the kernel keeps them open.
pub fn send_with_fds<const N: usize>(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: [BorrowedFd<'_>; N],
) -> Result<(), SysError> {
    let fds = fds.map(|fd| fd.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&fds)];
    let (parts, flags) = ([IoSlice::new(bytes)], MsgFlags::MSG_NOSIGNAL);
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, flags, None);
    sent.map(drop).map_err(|errno| SysError::nix("sendmsg(SCM_RIGHTS)", errno))
}

/// Waits for bytes and the descriptors that come with them, two at most. No bytes: the other end is
/// gone.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), SysError> {
    let failed = |errno| SysError::nix("recvmsg(SCM_RIGHTS)", errno);
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).map_err(failed)?;
    let mut received = Vec::new();
    for control in message.cmsgs().map_err(failed)? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us, so nothing else owns it.
                received.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}

/// Listens at `path`, for the owner alone, under a temporary name first, so that whoever finds the socket can
/// connect.
///
/// The mode is set on the socket before it has a name: bind(2) makes the file with the mode of the socket, less the
/// umask, so that there is no moment in which another user could connect, whatever the umask is.
pub fn listen(path: &Path) -> Result<UnixListener, SysError> {
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let (_dir, short) = short_name(&temporary)
        .map_err(|source| SysError::io("open the directory of", path, source))?;
    let failed = |verb: &'static str| {
        let call = format!("{verb} {}", temporary.display());
        move |errno| SysError::nix(call, errno)
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| SysError::nix("socket(AF_UNIX)", errno))?;
    fchmod(&made, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("fchmod"))?;
    let address = UnixAddr::new(&short).map_err(failed("bind"))?;
    bind(made.as_raw_fd(), &address).map_err(failed("bind"))?;
    // A umask may have taken the owner's own bits.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&temporary, mode)
        .map_err(|source| SysError::io("chmod", &temporary, source))?;
    start_listening(&made, Backlog::MAXCONN).map_err(failed("listen"))?;
    std::fs::rename(&temporary, path).map_err(|source| SysError::io("publish", path, source))?;
    Ok(UnixListener::from(made))
}

/// Connects to the socket at `path`, however long that is.
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let (_dir, short) = short_name(path)?;
    UnixStream::connect(short)
}

/// An address has room for some hundred bytes of a path. The directory, open, is as good as its name; the address
/// holds as long as it is.
fn short_name(path: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::open(above.unwrap_or_else(|| Path::new(".")), flags, Mode::empty())?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, short))
}

/// Sockets with a path below one of these trees to which everybody may connect, whom no read-only mount keeps from it,
/// as /proc tells those of our network.
pub fn open_to_everybody<'t>(trees: impl IntoIterator<Item = &'t Path>) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths: BTreeSet<&Path> = table.lines().filter_map(listens_at).collect();
    let trees: Vec<&Path> = trees.into_iter().collect();
    let may = |path: &Path, bits: u32| {
        std::fs::metadata(path).is_ok_and(|about| about.mode() & bits == bits)
    };
    let open = |path: &Path, tree: &Path| {
        let mut above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(tree));
        path.starts_with(tree) && may(path, 0o002) && above.all(|dir| may(dir, 0o001))
    };
    let open = paths.into_iter().filter(|path| trees.iter().any(|tree| open(path, tree)));
    open.map(Path::to_owned).collect()
}

/// The path at which a socket of this line of /proc/net/unix waits for whoever comes.
fn listens_at(line: &str) -> Option<&Path> {
    let path = Path::new(&line[line.find(" /")? + 1..]);
    let mut fields = line.split_whitespace().skip(3);
    let (flags, kind) = (u32::from_str_radix(fields.next()?, 16).ok()?, fields.next()?);
    (flags & ACCEPTS != 0 || kind == DATAGRAMS).then_some(path)
}

/// In /proc/net/unix: flags of a socket that takes connections, and the type of one that needs none.
const ACCEPTS: u32 = 1 << 16;
const DATAGRAMS: &str = "0002";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_may_connect_to_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).unwrap();
        };
        mode(dir.path(), 0o755);
        let [open, closed, inner] =
            ["open one", "closed", "within/inner"].map(|name| dir.path().join(name));
        std::fs::create_dir(inner.parent().unwrap()).unwrap();
        mode(inner.parent().unwrap(), 0o700);
        let _listen = [&open, &closed, &inner].map(|path| UnixListener::bind(path).unwrap());
        let datagrams = dir.path().join("datagrams");
        let _receive = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        for path in [&open, &inner, &datagrams] {
            mode(path, 0o777);
        }
        mode(&closed, 0o755);
        assert_eq!(open_to_everybody([dir.path()]), [datagrams.clone(), open.clone()]);
        mode(inner.parent().unwrap(), 0o711);
        assert_eq!(open_to_everybody([dir.path()]), [datagrams, open, inner]);
        assert!(open_to_everybody([Path::new("/nowhere")]).is_empty());
    }
}
