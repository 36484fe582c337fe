//! Pseudo terminals.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{self, SetArg, Termios};

use crate::SysError;

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
        crate::spawn::set_cloexec(fd, true)?;
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

/// Columns and rows of the terminal that standard output is.
pub fn size_of_own() -> Option<(u16, u16)> {
    let mut size = winsize(0, 0);
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is and which outlives the call.
    let ret = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (ret == 0 && size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// Hands every key of the terminal that standard input is through as it is, until it is dropped.
pub fn make_own_raw() -> Result<Raw, SysError> {
    let stdin = std::io::stdin();
    let failed = |errno| SysError::nix("tcsetattr", errno);
    let before = termios::tcgetattr(&stdin).map_err(failed)?;
    let mut raw = before.clone();
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(failed)?;
    Ok(Raw { before })
}

/// Gives the terminal back as it was.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

fn winsize(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}
