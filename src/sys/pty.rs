//! Pseudo terminals.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::pty::{Winsize, openpty};

use crate::sys::SysError;

/// Both ends of a new terminal.
#[derive(Debug)]
pub struct Pty {
    /// What we read and write.
    pub master: OwnedFd,
    /// What the workload takes for its terminal.
    pub slave: OwnedFd,
}

/// Opens a terminal of the given size; both ends are close-on-exec.
pub fn open(cols: u16, rows: u16) -> Result<Pty, SysError> {
    let size = winsize(cols, rows);
    let pair = openpty(&size, None).map_err(|errno| SysError::nix("openpty", errno))?;
    for fd in [pair.master.as_fd(), pair.slave.as_fd()] {
        crate::sys::spawn::set_cloexec(fd, true)?;
    }
    Ok(Pty { master: pair.master, slave: pair.slave })
}

/// Tells the terminal its size; the workload gets SIGWINCH.
pub fn resize(master: BorrowedFd<'_>, cols: u16, rows: u16) -> Result<(), SysError> {
    let size = winsize(cols, rows);
    // SAFETY: TIOCSWINSZ reads one winsize, which `size` is and which outlives the call.
    let ret = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if ret < 0 { Err(SysError::last("ioctl(TIOCSWINSZ)")) } else { Ok(()) }
}

/// Makes `slave` the controlling terminal of this session leader.
pub fn make_controlling(slave: BorrowedFd<'_>) -> Result<(), SysError> {
    // SAFETY: TIOCSCTTY takes an integer argument and touches no memory of ours.
    let ret = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if ret < 0 { Err(SysError::last("ioctl(TIOCSCTTY)")) } else { Ok(()) }
}

fn winsize(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}
