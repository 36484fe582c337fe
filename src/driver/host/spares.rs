//! Shims made ahead: started, initialised, and waiting to be told which instance to serve.
//!
//! A spare has no instance, no lock and no cgroup; it ends by itself when the daemon does. Having one
//! at hand takes an exec, the loading of a program and a fork of the daemon out of a start. When there
//! is none, one is made on the spot: the way is the same, only longer.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Kept ready. More would only help where several start within the same moment.
const SPARE_COUNT: usize = 2;
/// A start in progress has the machine to itself for this long, before the next spare is made.
const REFILL_AFTER: Duration = Duration::from_millis(100);

/// A shim that waits, and our end of its socket.
#[derive(Debug)]
pub(super) struct Spare {
    pub child: Child,
    pub control: UnixStream,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Spares {
    ready: Arc<Mutex<Vec<Spare>>>,
    program: PathBuf,
    log: PathBuf,
    taken: Sender<()>,
}

impl Spares {
    pub(super) fn new(program: &Path, log: &Path) -> Self {
        let (taken, inbox) = channel();
        let ready: Arc<Mutex<Vec<Spare>>> = Arc::default();
        let (shelf, maker) = (Arc::clone(&ready), (program.to_owned(), log.to_owned()));
        let refill = move || {
            // Ends when the sender is dropped, with the daemon.
            while inbox.recv().is_ok() {
                thread::sleep(REFILL_AFTER);
                while inbox.try_recv().is_ok() {}
                while lock(&shelf).len() < SPARE_COUNT
                    && let Ok(spare) = make(&maker.0, &maker.1)
                {
                    lock(&shelf).push(spare);
                }
            }
        };
        thread::Builder::new()
            .name("spares".to_owned())
            .spawn(refill)
            .expect("a thread can be started at start-up");
        let spares = Self { ready, program: program.to_owned(), log: log.to_owned(), taken };
        spares.wake();
        spares
    }

    /// One that waits, or a new one.
    pub(super) fn take(&self) -> io::Result<Spare> {
        let found = lock(&self.ready).pop();
        self.wake();
        match found {
            Some(spare) => Ok(spare),
            None => make(&self.program, &self.log),
        }
    }

    fn wake(&self) {
        // The thread ends only with us.
        let _ = self.taken.send(());
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        for Spare { mut child, control } in lock(&self.ready).drain(..) {
            drop(control);
            // It sees the end of its socket and follows.
            let _ = child.wait();
        }
    }
}

fn lock(shelf: &Mutex<Vec<Spare>>) -> MutexGuard<'_, Vec<Spare>> {
    shelf.lock().expect("nobody panics while holding the spares")
}

fn make(program: &Path, log: &Path) -> io::Result<Spare> {
    let (control, theirs) = UnixStream::pair()?;
    let log = fs::File::options().append(true).create(true).open(log)?;
    let child = Command::new(program)
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(Spare { child, control })
}
