//! The daemon's side of the fork server: started when it is needed, replaced when it is gone.
//!
//! Nothing waits for an answer. An order that is lost with its server closes the instance's lock and
//! socket, which is how a shim's absence is seen in every other case too.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use sodium_sys::{self as sys, socket};

/// How long a server may take to end once nothing more can come.
const END_TIME_MAX: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub(crate) struct ForkServer {
    program: PathBuf,
    log: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// `None` only while it is being dropped.
    orders: Option<OwnedFd>,
}

impl ForkServer {
    /// One that runs the program. If that cannot be started now, the first order says why.
    pub(crate) fn new(program: &Path, log: &Path) -> Self {
        let (program, log) = (program.to_owned(), log.to_owned());
        let running = Running::start(&program, &log).ok();
        Self { program, log, running: Mutex::new(running) }
    }

    /// Orders a shim for a run directory, and hands it that directory's lock. What comes back is the
    /// daemon's end of the new shim's socket.
    pub(crate) fn order(&self, run_dir: &Path, lock: BorrowedFd<'_>) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.send(run_dir, [theirs.as_fd(), lock])?;
        Ok(ours)
    }

    /// Orders a process that runs what the file says, inside what runs. It lives no longer than the
    /// socket that comes back.
    pub(crate) fn order_exec(&self, order: &Path) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.send(order, [theirs.as_fd()])?;
        Ok(ours)
    }

    fn send<const N: usize>(&self, path: &Path, fds: [BorrowedFd<'_>; N]) -> io::Result<()> {
        let path = path.as_os_str().as_encoded_bytes();
        let mut running = self.running();
        // It may have died since the last order, which shows only now.
        if running.as_ref().is_some_and(|server| server.send(path, fds).is_ok()) {
            return Ok(());
        }
        let fresh = Running::start(&self.program, &self.log)?;
        fresh.send(path, fds)?;
        *running = Some(fresh);
        Ok(())
    }

    /// Ends the server, with all orders it has not carried out; the next order starts another.
    pub(crate) fn abandon(&self) {
        if let Some(mut server) = self.running().take() {
            // Ours and not reaped, so the signal can meet nobody else. An error means that it ended.
            let _ = server.child.kill();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().expect("nobody panics while holding the fork server")
    }
}

impl Running {
    fn start(program: &Path, log: &Path) -> io::Result<Self> {
        let (orders, theirs) = socket::packets().map_err(|error| error.source)?;
        let log = fs::File::options().append(true).create(true).mode(0o600).open(log)?;
        // What enters a sandbox as its user could be led to open its own program for writing, or to change its mode:
        // where that user is the daemon's, it is a copy that nobody can change.
        let copy = if sodium_sys::is_root() { None } else { Some(copy_of(program)?) };
        let run = copy.as_ref().map_or_else(
            || program.to_owned(),
            |copy| PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd())),
        );
        let child = Command::new(run)
            .arg0(program)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { child, orders: Some(orders) })
    }

    fn send<const N: usize>(&self, path: &[u8], fds: [BorrowedFd<'_>; N]) -> io::Result<()> {
        let orders = self.orders.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        socket::send_with_fds(orders.as_fd(), path, fds).map_err(|error| error.source)
    }
}

fn copy_of(program: &Path) -> io::Result<OwnedFd> {
    sys::memory_file(&fs::read(program)?).map_err(|error| error.source)
}

impl Drop for Running {
    /// It carries out what it was ordered, sees that no more can come, and ends.
    fn drop(&mut self) {
        self.orders = None;
        let deadline = Instant::now() + END_TIME_MAX;
        // One that is stuck is left behind: it is nobody's, and nothing hangs on it.
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
