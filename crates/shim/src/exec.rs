//! One program that is run inside what runs: started, listened to, and ended when nobody is left at the
//! other end of the connection. It is no part of the workload's life: nothing of it is stored, and its
//! end is nobody's exit.
//!
//! ```text
//!   order file --> usher --enters--> program      stdout, stderr --frames--> daemon
//!                                       ^ stdin <--------credit------------- daemon
//!   connection gone: its processes are killed; workload gone: they die with its cgroup
//! ```

mod enter;
pub mod order;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::child;
use crate::connection::Connection;
use crate::forkserver::ExecDuty;
use crate::launch::LOCK;
use crate::protocol::{Frame, Request, Told, output};
use crate::runtime;
use crate::stdin::Stdin;
use enter::Started;
use order::{ExecOrder, Way};
use sodium_sys::error::chain;
use sodium_sys::poll::{self, Interest, Ready, Signals, Timer};
use sodium_sys::process::{self, Ended};
use sodium_sys::{SysError, clock, namespace, pty, spawn};

/// Kept of what runsc says instead of running the program.
const COMPLAINT_BYTES_MAX: usize = 4096;
/// How often it is looked whether runsc has started the program; there is no event for it.
const PROBE_MS: u64 = 5;
/// A runsc that does not take a kill for this long is killed itself.
const KILL_GIVE_UP_MS: u64 = 10_000;
/// Read at once from an output, and sent as one frame.
const OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// What the files of one program end in: the order, and what runsc reads and writes.
pub const FILES: [&str; 3] = ["json", "process", "pid"];
/// How often what is to end is killed again.
const KILL_AGAIN_MS: u64 = 20;
/// What the program left behind may hold its pipes open; it is waited for this long.
const DRAIN_MS: u64 = 200;

#[derive(Debug)]
struct Session {
    connection: Connection,
    way: Way,
    stdin: Stdin,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    failure: Option<OwnedFd>,
    is_tty: bool,
    /// Held until the program has ended, whatever it closes.
    terminal: Option<OwnedFd>,
    usher: Option<u32>,
    /// The program, or the runsc that stands for it; inside of namespaces it becomes known when the
    /// usher has ended.
    program: Option<u32>,
    /// Output that came before the program is known to run: runsc's own.
    complaint: Vec<u8>,
    has_begun: bool,
    /// How the program ended, and when.
    ended: Option<(Ended, u64)>,
    killing: Option<Killing>,
    /// The end was told, or nobody is left to be told.
    over: bool,
}

#[derive(Debug, Clone, Copy)]
struct Killing {
    since_boot_ms: u64,
    next_boot_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Timer,
    Connection,
    Failure,
    Output { is_stderr: bool },
    Stdin,
}

/// Does what it is for, and returns when nothing of it is left.
pub(super) fn serve(duty: ExecDuty) -> Result<(), SysError> {
    spawn::new_session()?;
    let mut signals = Signals::open()?;
    let mut timer = Timer::open()?;
    let mut connection = Connection::new(duty.control);
    let run_dir = duty.order.parent().unwrap_or(&duty.order);
    // As the kernel names where its shim works.
    let run_dir = &fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let started = read_order(&duty.order).and_then(|order| {
        // The tenant pays for us, and for the runsc that we start.
        order.helpers.join_v1()?;
        if let Way::Gvisor { .. } = order.way {
            // There runsc's other half listens, and nowhere else.
            namespace::enter_network_of_holder(&run_dir.join(LOCK))?;
        }
        Ok((enter::start(&order, run_dir)?, order))
    });
    let mut session = match started {
        Ok((started, order)) => Session::new(connection, started, order),
        Err(error) => {
            let told = Told::Failed { stage: "prepare".to_owned(), message: chain(&error) };
            connection.send(&told);
            return Ok(());
        }
    };
    while !session.is_done() {
        timer.set(session.next_deadline())?;
        let (sources, interests) = session.interests(&signals, &timer);
        let ready = poll::wait(&interests)?;
        drop(interests);
        for (source, ready) in sources.into_iter().zip(ready) {
            match source {
                _ if ready == Ready::default() => (),
                Source::Signals => signals.drain(),
                Source::Timer => timer.drain(),
                Source::Connection => session.converse(ready),
                Source::Failure => session.read_failure(),
                Source::Output { is_stderr } => drop(session.read_output(is_stderr)),
                Source::Stdin => session.drain_stdin(),
            }
        }
        session.advance();
    }
    if let Some(program) = session.program {
        let _ = process::reap(program);
    }
    for extension in FILES {
        // Gone already, with the whole run directory, if the workload has ended.
        let _ = fs::remove_file(duty.order.with_extension(extension));
    }
    Ok(())
}

fn read_order(path: &Path) -> Result<ExecOrder, SysError> {
    let failed = |source| SysError::io("read", path, source);
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

impl Session {
    fn new(connection: Connection, started: Started, order: ExecOrder) -> Self {
        let is_tty = order.tty.is_some();
        Self {
            connection,
            way: order.way,
            stdin: Stdin::new(Some(started.stdio.stdin), is_tty),
            stdout: Some(started.stdio.stdout),
            stderr: started.stdio.stderr,
            failure: Some(started.failure),
            is_tty,
            terminal: started.terminal,
            usher: started.usher,
            program: started.program,
            complaint: Vec::new(),
            has_begun: false,
            ended: None,
            killing: None,
            over: false,
        }
    }

    /// Told to the end, or untold because nobody is there; and no process is left.
    fn is_done(&self) -> bool {
        let heard = self.connection.is_gone() || !self.connection.wants_write();
        let has_ended = |pid: &u32| self.ended.is_some() && self.program == Some(*pid);
        self.over && heard && process::children(std::process::id()).iter().all(has_ended)
    }

    fn next_deadline(&self) -> Option<u64> {
        // Whoever takes nothing of what was said is not waited for by the clock.
        let waits = !self.over && self.connection.is_idle();
        let drained = self.ended.filter(|_| waits).map(|(_, at)| at + DRAIN_MS);
        let kill = self.killing.map(|killing| killing.next_boot_ms);
        let is_starting = matches!(self.way, Way::Gvisor { .. }) && !self.has_begun && !self.over;
        let probe = is_starting.then(|| clock::boot_ms() + PROBE_MS);
        [kill, drained, probe].into_iter().flatten().min()
    }

    fn interests<'a>(
        &'a self,
        signals: &'a Signals,
        timer: &'a Timer,
    ) -> (Vec<Source>, Vec<Interest<'a>>) {
        let reading = |fd| Interest { fd, read: true, write: false };
        let mut sources = vec![Source::Signals, Source::Timer];
        let mut interests = vec![reading(signals.fd()), reading(timer.fd())];
        if !self.connection.is_gone() {
            sources.push(Source::Connection);
            let write = self.connection.wants_write();
            interests.push(Interest { fd: self.connection.fd(), read: true, write });
        }
        // Nothing more is read than the other end takes.
        let takes = self.connection.is_idle() && !self.connection.is_gone();
        let output = |fd: &'a Option<OwnedFd>| fd.as_ref().filter(|_| takes).map(AsFd::as_fd);
        let ends: [(Source, Option<BorrowedFd<'a>>); 4] = [
            (Source::Failure, self.failure.as_ref().map(AsFd::as_fd)),
            (Source::Output { is_stderr: false }, output(&self.stdout)),
            (Source::Output { is_stderr: true }, output(&self.stderr)),
            (Source::Stdin, self.stdin.wants_write()),
        ];
        for (source, fd) in ends {
            let Some(fd) = fd else { continue };
            let write = source == Source::Stdin;
            sources.push(source);
            interests.push(Interest { fd, read: !write, write });
        }
        (sources, interests)
    }

    fn converse(&mut self, ready: Ready) {
        if ready.write {
            self.connection.flush();
        }
        if ready.read {
            self.connection.receive();
        }
        while let Some(frame) = self.connection.next_frame() {
            match frame {
                // Bytes beyond the credit are from a peer that does not keep to it.
                Frame::Stdin { offset, bytes } => {
                    let _ = self.stdin.accept(offset, &bytes);
                    self.tell_credit();
                }
                Frame::Control(json) => match serde_json::from_slice(&json) {
                    Ok(Request::Resize { cols, rows }) if self.is_tty => {
                        if let Some(master) = &self.stdout {
                            // The program may have ended a moment ago.
                            let _ = pty::resize(master.as_fd(), cols, rows);
                        }
                    }
                    Ok(Request::StdinEnd) => {
                        self.stdin.end();
                        self.tell_credit();
                    }
                    // Nothing else has a meaning here.
                    Ok(_) | Err(_) => (),
                },
                Frame::Output { .. } => (),
            }
        }
    }

    fn tell_credit(&mut self) {
        let (next, credit) = (self.stdin.next(), self.stdin.credit() as u64);
        self.connection.send(&Told::Credit { next, credit, open: self.stdin.is_open() });
    }

    fn drain_stdin(&mut self) {
        if self.stdin.drain() {
            self.tell_credit();
        }
    }

    /// The child said what failed, or exec closed the pipe.
    fn read_failure(&mut self) {
        let Some(pipe) = self.failure.take() else { return };
        if let Some((stage, message)) = child::read_failure(pipe) {
            self.finish(&Told::Failed { stage, message });
        } else if !matches!(self.way, Way::Gvisor { .. }) {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.has_begun = true;
        self.connection.send(&Told::Began);
        self.tell_credit();
    }

    /// Whether runsc has started the program by now.
    fn probe(&mut self) {
        let Way::Gvisor { pid_file, .. } = &self.way else { return };
        if self.has_begun || self.failure.is_some() || inner_pid(pid_file).is_none() {
            return;
        }
        self.begin();
        // It was the program that spoke.
        let bytes = std::mem::take(&mut self.complaint);
        if !bytes.is_empty() {
            self.connection.send_frame(&output(!self.is_tty, &bytes));
        }
    }

    /// Reads one output once. Returns whether there was anything.
    fn read_output(&mut self, is_stderr: bool) -> bool {
        let source = if is_stderr { &mut self.stderr } else { &mut self.stdout };
        let Some(fd) = source else { return false };
        let mut buffer = [0; OUTPUT_BYTES_MAX];
        let count = match poll::read_some(fd.as_fd(), &mut buffer) {
            Ok(Some(count @ 1..)) => count,
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => {
                *source = None;
                return false;
            }
        };
        self.probe();
        // On a terminal, and on standard error, runsc has a voice as well.
        if !self.has_begun && (is_stderr || self.is_tty) {
            let room = COMPLAINT_BYTES_MAX.saturating_sub(self.complaint.len());
            self.complaint.extend_from_slice(&buffer[..count.min(room)]);
        } else {
            self.connection.send_frame(&output(is_stderr, &buffer[..count]));
        }
        true
    }

    /// Draws the conclusions that time and events allow.
    fn advance(&mut self) {
        self.reap();
        self.probe();
        let now = clock::boot_ms();
        if self.connection.is_gone() {
            self.over = true;
            let begun = Killing { since_boot_ms: now, next_boot_ms: now };
            let killing = *self.killing.get_or_insert(begun);
            if killing.next_boot_ms <= now {
                self.kill(now.saturating_sub(killing.since_boot_ms));
                self.killing = Some(Killing { next_boot_ms: now + KILL_AGAIN_MS, ..killing });
            }
        }
        if let Some((ended, at)) = self.ended.filter(|_| !self.over && self.failure.is_none()) {
            self.conclude(ended, now.saturating_sub(at));
        }
    }

    /// The program itself is not reaped before we end: its number is that of its session, by which we kill, and is
    /// nobody else's until then.
    fn reap(&mut self) {
        let now = clock::boot_ms();
        for pid in process::children(std::process::id()) {
            if self.usher == Some(pid) {
                let Some(ended) = process::reap(pid) else { continue };
                self.usher = None;
                // It has failed, otherwise, and the report says at what.
                if ended != Ended::Exited(0) {
                    self.ended = Some((ended, now));
                }
            } else if self.program.is_some_and(|program| program != pid) {
                let _ = process::reap(pid);
            } else if self.usher.is_none() {
                self.program = Some(pid);
            }
        }
        if self.ended.is_none() {
            self.ended = self.program.and_then(process::has_ended).map(|ended| (ended, now));
        }
        if self.ended.is_some() {
            self.terminal = None;
        }
    }

    /// The program has ended: nothing that it said may be lost, but nobody else is waited for long.
    fn conclude(&mut self, ended: Ended, since_ms: u64) {
        for is_stderr in [false, true] {
            while self.connection.is_idle() && self.read_output(is_stderr) {}
        }
        let silent = self.stdout.is_none() && self.stderr.is_none();
        if !self.connection.is_idle() || !silent && since_ms < DRAIN_MS {
            return;
        }
        self.probe();
        if !self.has_begun {
            let said = String::from_utf8_lossy(&self.complaint).into_owned();
            let line = said.lines().rev().find(|line| !line.trim().is_empty());
            let line = line.unwrap_or("it ended without a word");
            let message = runtime::essence(line.trim()).to_owned();
            return self.finish(&Told::Failed { stage: "runsc".to_owned(), message });
        }
        let (code, signal) = match ended {
            Ended::Exited(code) => (Some(code), None),
            Ended::Signaled(signal) => (None, Some(signal)),
        };
        self.finish(&Told::Ended { code, signal });
    }

    fn finish(&mut self, told: &Told) {
        self.connection.send(told);
        self.complaint.clear();
        self.over = true;
    }

    /// Kills the program and its session, and says so to nobody.
    fn kill(&self, for_ms: u64) {
        match &self.way {
            Way::Gvisor { program, kill_args, pid_file, .. } => {
                if for_ms > KILL_GIVE_UP_MS {
                    return kill_children();
                }
                let Some(pid) = inner_pid(pid_file) else { return };
                let pid = pid.to_string();
                let args = kill_args.iter().map(|arg| if arg == PID { &pid } else { arg });
                let mut command = Command::new(program);
                command.args(args.skip(1)).env_clear();
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                // One that fails is tried again; and gVisor need not answer it.
                let longest = Duration::from_millis(KILL_GIVE_UP_MS);
                let wait = |mut runsc| process::wait_within(&mut runsc, longest);
                let _ = command.spawn().and_then(wait);
            }
            Way::Namespaces { confined, .. } | Way::Beside { confined, .. } => {
                let Some(program) = self.program else { return kill_children() };
                let group = &confined.group;
                let near = if group.is_nowhere() { process::all() } else { group.pids() };
                for pid in near {
                    // Opened first, looked at then: what is killed is what was looked at.
                    if let Ok(pidfd) = process::open_pidfd(pid)
                        && process::session(pid) == Some(program)
                    {
                        let _ = process::signal(pidfd.as_fd(), 9);
                    }
                }
                kill_children();
            }
        }
    }
}

/// Stands in [`Way::Gvisor`]'s `kill_args` for the number inside.
pub const PID: &str = "{pid}";

/// The number that the program has inside, once it runs.
fn inner_pid(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Our own unreaped children: their ids cannot have been given to anybody else.
fn kill_children() {
    for pid in process::children(std::process::id()) {
        if let Ok(pidfd) = process::open_pidfd(pid) {
            let _ = process::signal(pidfd.as_fd(), 9);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_takes_nothing_of_what_was_said_is_not_waited_for_by_the_clock() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (stdin, read) = poll::pipe().unwrap();
        let (stdout, said) = poll::pipe().unwrap();
        let mut session = Session {
            connection: Connection::new(ours),
            way: Way::Gvisor {
                program: String::new(),
                args: Vec::new(),
                kill_args: Vec::new(),
                pid_file: "/nowhere".into(),
            },
            stdin: Stdin::new(Some(read), false),
            stdout: Some(stdout),
            stderr: None,
            failure: None,
            is_tty: false,
            terminal: None,
            usher: None,
            program: None,
            complaint: Vec::new(),
            has_begun: true,
            ended: Some((Ended::Exited(0), 0)),
            killing: None,
            over: false,
        };
        assert_eq!(session.next_deadline(), Some(DRAIN_MS));
        while session.connection.is_idle() {
            session.connection.send_frame(&output(false, &[0; OUTPUT_BYTES_MAX]));
        }
        assert_eq!(session.next_deadline(), None);
        drop((theirs, stdin, said));
    }
}
