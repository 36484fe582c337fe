//! Waiting: poll, signals and deadlines as descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::SysError;

/// What to wait for on one descriptor, and afterwards what came.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'fd> {
    pub fd: BorrowedFd<'fd>,
    pub read: bool,
    pub write: bool,
}

/// What a descriptor is ready for. A hang-up counts as readable: reading then says why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    pub read: bool,
    pub write: bool,
}

/// Waits until one descriptor is ready; the answers are in the order of the questions.
pub fn wait(interests: &[Interest<'_>]) -> Result<Vec<Ready>, SysError> {
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|one| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, one.read);
            flags.set(PollFlags::POLLOUT, one.write);
            PollFd::new(one.fd, flags)
        })
        .collect();
    loop {
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => break,
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(SysError::nix("poll", errno)),
        }
    }
    let broken = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(fds
        .iter()
        .map(|fd| {
            let got = fd.revents().unwrap_or(PollFlags::empty());
            Ready {
                read: got.intersects(PollFlags::POLLIN | broken),
                write: got.intersects(PollFlags::POLLOUT | PollFlags::POLLERR),
            }
        })
        .collect())
}

/// Whether nobody is left at the other end of a pipe that we write to.
pub fn is_broken(pipe: BorrowedFd<'_>) -> Result<bool, SysError> {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).map_err(|errno| SysError::nix("poll", errno))?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
}

/// Whether there is something to read before long, or nothing more will come.
pub fn is_readable_within(fd: BorrowedFd<'_>, ms: u16) -> Result<bool, SysError> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let count = nix::poll::poll(&mut fds, PollTimeout::from(ms));
    count.map(|count| count > 0).map_err(|errno| SysError::nix("poll", errno))
}

/// SIGCHLD and the signals that would end us, as something to read.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals and opens the descriptor.
    pub fn open() -> Result<Self, SysError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().map_err(|errno| SysError::nix("sigprocmask", errno))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd =
            SignalFd::with_flags(&set, flags).map_err(|errno| SysError::nix("signalfd", errno))?;
        Ok(Self(fd))
    }

    /// Forgets what is pending. What happened is asked of the kernel, not of the signal.
    pub fn drain(&mut self) {
        while let Ok(Some(_)) = self.0.read_signal() {}
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A deadline on the clock that counts suspends and never jumps.
#[derive(Debug)]
pub struct Timer {
    fd: TimerFd,
    /// What it is set to, as far as that is known.
    set_to: Option<Option<u64>>,
}

impl Timer {
    pub fn open() -> Result<Self, SysError> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)
            .map_err(|errno| SysError::nix("timerfd_create", errno))?;
        Ok(Self { fd: timer, set_to: Some(None) })
    }

    /// Fires once at `boot_ms`; `None` never.
    pub fn set(&mut self, boot_ms: Option<u64>) -> Result<(), SysError> {
        if self.set_to == Some(boot_ms) {
            return Ok(());
        }
        let done = match boot_ms {
            // Zero would disarm, so the past is the first millisecond.
            Some(at) => self.fd.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_millis(at.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.fd.unset(),
        };
        done.map_err(|errno| SysError::nix("timerfd_settime", errno))?;
        self.set_to = Some(boot_ms);
        Ok(())
    }

    /// Reads the expiry, so that the descriptor is quiet again.
    pub fn drain(&mut self) {
        self.set_to = None;
        let mut count = [0_u8; 8];
        // Nonblocking: EAGAIN says it has not fired, which is fine too.
        let _ = nix::unistd::read(self.fd.as_fd(), &mut count);
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A pipe whose ends are close-on-exec; `(read, write)`.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), SysError> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| SysError::nix("pipe2", errno))
}

/// Makes a pipe with a name and opens it to read from. It has no end, whoever writes and leaves.
pub fn named_pipe(path: &std::path::Path) -> Result<OwnedFd, SysError> {
    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    let failed = |errno| SysError::nix(format!("mkfifo {}", path.display()), errno);
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
        .map_err(|errno| SysError::nix(format!("open {}", path.display()), errno))
}

/// Asks for a larger pipe buffer. A refusal only costs speed.
pub fn grow_pipe(fd: BorrowedFd<'_>, bytes: i32) {
    // SAFETY: F_SETPIPE_SZ takes an integer and touches no memory of ours.
    let _ = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

/// Reads what is there. `Ok(None)`: nothing now; `Ok(Some(0))`: the end.
pub fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, SysError> {
    loop {
        match nix::unistd::read(fd, buffer) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return Ok(None),
            // A terminal whose last user is gone answers EIO: that is its end.
            Err(Errno::EIO) => return Ok(Some(0)),
            Err(errno) => return Err(SysError::nix("read", errno)),
        }
    }
}

/// Writes what fits. `Ok(None)`: nothing fits now.
pub fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<Option<usize>, SysError> {
    loop {
        match nix::unistd::write(fd, bytes) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(SysError::nix("write", errno)),
        }
    }
}

/// Makes reads and writes return instead of wait.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), SysError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| SysError::nix("fcntl(O_NONBLOCK)", errno))
}
