//! The shim's loop: wait for something, take note of it, see what follows, tell whoever listens.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use crate::connection::{Connection, News};
use crate::forkserver::{self, Assignment, InstanceDuty};
use crate::launch::{LOCK, Launch, SOCKET};
use crate::protocol::{
    Frame, OLDEST, Phase, Reply, Request, State, UNSUPPORTED_VERSION, VERSION, agree,
};
use crate::spool::Stream;
use crate::workload::Workload;
use crate::{complain, exec, init, probe};
use sodium_sys::error::chain;
use sodium_sys::lock::{self, Lock};
use sodium_sys::poll::{self, Interest, Ready, Signals, Timer};
use sodium_sys::{SysError, clock, confined, process, pty, socket, spawn};

/// The shim could not even begin: EX_OSERR.
const EXIT_BROKEN: u8 = 71;
/// Connections served at once. The daemon needs two; more is somebody lost.
const CONNECTIONS_MAX: usize = 16;

/// Runs the fork server, and in each process that it forks the shim of one instance, until that is
/// released.
///
/// Under another name it is the first program of a guest instead.
pub fn run() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name.ends_with(init::NAME) {
        let words: Vec<String> = std::env::args().skip(1).collect();
        return match words.split_first() {
            Some((first, rest)) if first == probe::WORD => probe::run(rest),
            Some((first, [])) if first == init::START => init::start(),
            _ => init::run(),
        };
    }
    let done = forkserver::serve().and_then(|assignment| match assignment {
        Some(Assignment::Instance(duty)) => Shim::begin(duty).map(|shim| {
            if let Some(mut shim) = shim {
                shim.serve();
            }
        }),
        Some(Assignment::Exec(duty)) => exec::serve(duty),
        None => Ok(()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&chain(&error));
            ExitCode::from(EXIT_BROKEN)
        }
    }
}

struct Shim {
    workload: Workload,
    listener: UnixListener,
    connections: Vec<Connection>,
    signals: Signals,
    timer: Timer,
    /// The highest epoch that ever said hello.
    epoch: u64,
    released: bool,
    _lock: Lock,
}

/// What a descriptor that became ready belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Timer,
    Listener,
    Connection(usize),
    Output(Stream),
    Stdin,
    Failure,
    Terminal,
    UserLog,
    Memory,
}

impl Shim {
    /// Starts the workload of the run directory. `None`: the lock is not that directory's.
    fn begin(duty: InstanceDuty) -> Result<Option<Self>, SysError> {
        let InstanceDuty { run_dir, control, lock, network } = duty;
        spawn::new_session()?;
        process::become_subreaper()?;
        let signals = Signals::open()?;
        // Paths of sockets are short, so everything in the run directory is named from within.
        std::env::set_current_dir(&run_dir)
            .map_err(|source| SysError::io("chdir", &run_dir, source))?;
        let Some(lock) = lock::inherit(lock, Path::new(LOCK))? else { return Ok(None) };
        let launch = read_launch()?;
        let (epoch, helpers) = (launch.epoch, launch.helpers.clone());
        let mut follower = Connection::new(control);
        follower.subscribed = true;
        // The workload first: what follows here goes on beside its start.
        let workload = Workload::start(launch, network)?;
        // What the workload has us do is its to pay.
        helpers.join_v1()?;
        let timer = Timer::open()?;
        let listener = socket::listen(Path::new(SOCKET))?;
        let connections = vec![follower];
        Ok(Some(Self {
            workload,
            listener,
            connections,
            signals,
            timer,
            epoch,
            released: false,
            _lock: lock,
        }))
    }

    fn serve(&mut self) {
        self.spread(News { state: true, ..News::default() });
        while !self.released {
            self.tell();
            if let Err(error) = self.turn() {
                // poll itself failed: out of memory. Waiting is all that is left to do.
                complain(&chain(&error));
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
        self.tell();
    }

    /// One wait and everything that follows from it.
    fn turn(&mut self) -> Result<(), SysError> {
        self.timer.set(self.workload.next_deadline())?;
        let (sources, interests) = self.interests();
        let ready = poll::wait(&interests)?;
        drop(interests);
        let before = self.workload.phase();
        for (source, ready) in sources.into_iter().zip(ready) {
            if ready != Ready::default() {
                self.attend(source, ready);
            }
        }
        self.connections.retain(|connection| !connection.is_gone());
        self.workload.advance(clock::boot_ms());
        if before != self.workload.phase() {
            self.spread(News { state: true, ..News::default() });
        }
        Ok(())
    }

    fn interests(&self) -> (Vec<Source>, Vec<Interest<'_>>) {
        let reading = |fd| Interest { fd, read: true, write: false };
        let mut sources = vec![Source::Signals, Source::Timer, Source::Listener];
        let mut interests = vec![
            reading(self.signals.fd()),
            reading(self.timer.fd()),
            reading(self.listener.as_fd()),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(index));
            let write = connection.wants_write();
            interests.push(Interest { fd: connection.fd(), read: true, write });
        }
        let io = &self.workload;
        let paced = io.is_paced(clock::boot_ms());
        let ends: [(Source, Option<BorrowedFd<'_>>); 7] = [
            (
                Source::Output(Stream::Stdout),
                io.stdout.as_ref().filter(|_| !paced).map(AsFd::as_fd),
            ),
            (
                Source::Output(Stream::Stderr),
                io.stderr.as_ref().filter(|_| !paced).map(AsFd::as_fd),
            ),
            (Source::Stdin, io.stdin.wants_write()),
            (Source::Failure, io.failure.as_ref().map(AsFd::as_fd)),
            (Source::Terminal, io.terminal_listener()),
            (Source::UserLog, io.user_log()),
            (Source::Memory, io.memory_event()),
        ];
        for (source, fd) in ends {
            let Some(fd) = fd else { continue };
            let write = source == Source::Stdin;
            sources.push(source);
            interests.push(Interest { fd, read: !write, write });
        }
        (sources, interests)
    }

    fn attend(&mut self, source: Source, ready: Ready) {
        match source {
            Source::Signals => {
                self.signals.drain();
                self.workload.reap();
            }
            Source::Timer => self.timer.drain(),
            Source::Listener => self.accept(),
            Source::Connection(index) => self.converse(index, ready),
            Source::Output(stream) => {
                if self.workload.read_output(stream) {
                    self.spread(News { console: true, ..News::default() });
                }
            }
            Source::Stdin => {
                if self.workload.stdin.drain() {
                    self.spread(News { credit: true, ..News::default() });
                }
            }
            Source::Failure => self.workload.read_failure(),
            Source::Terminal => self.workload.take_terminal(),
            Source::UserLog => self.workload.read_user_log(),
            Source::Memory => self.workload.heard_of_memory(),
        }
    }

    fn accept(&mut self) {
        // A peer that hung up again, or descriptors running out: the next one may fare better.
        let Ok((stream, _)) = self.listener.accept() else { return };
        // Where we are not root, those inside are the same user as we are.
        let (own, _) = sodium_sys::own_ids();
        let is_ours = |peer: socket::Peer| {
            peer.uid == 0
                || peer.uid == own && (own == 0 || !confined::is_inside(peer.pid, &stream))
        };
        let welcome = socket::peer(&stream).is_ok_and(is_ours);
        if welcome && self.connections.len() < CONNECTIONS_MAX {
            self.connections.push(Connection::new(stream));
        }
    }

    fn converse(&mut self, index: usize, ready: Ready) {
        if ready.write {
            self.connections[index].flush();
        }
        if ready.read {
            self.connections[index].receive();
        }
        while let Some(frame) = self.connections[index].next_frame() {
            let reply = match frame {
                Frame::Control(json) => match serde_json::from_slice(&json) {
                    Ok(request) => self.answer(index, request),
                    Err(_) => refuse("unsupported", "this shim does not know that request"),
                },
                Frame::Stdin { offset, bytes } => self.take_input(index, offset, &bytes),
                Frame::Output { .. } => refuse("unsupported", "output goes the other way"),
            };
            self.connections[index].send(&reply);
        }
    }

    fn take_input(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Reply {
        if !self.has_authority(index) {
            return refuse("stale_epoch", "a newer daemon has taken over");
        }
        match self.workload.stdin.accept(offset, bytes) {
            Ok(()) => self.workload.credit(),
            Err(refusal) => refuse("stdin", &refusal.to_string()),
        }
    }

    fn answer(&mut self, index: usize, request: Request) -> Reply {
        if let Request::Hello { version, oldest, epoch, subscribe } = request {
            if agree(oldest.unwrap_or(version), version).is_none() {
                return refuse(UNSUPPORTED_VERSION, &format!("it speaks {OLDEST} to {VERSION}"));
            }
            if epoch < self.epoch {
                return refuse("stale_epoch", "a newer daemon has taken over");
            }
            self.epoch = epoch;
            self.connections[index].epoch = Some(epoch);
            self.connections[index].subscribed = subscribe;
            return Reply::State(Box::new(self.state()));
        }
        if !self.has_authority(index) {
            return refuse("stale_epoch", "say hello first, with the newest epoch");
        }
        match request {
            Request::Hello { .. } | Request::Status => return Reply::State(Box::new(self.state())),
            Request::Stop { signal, grace_ms, reason } => {
                self.workload.stop(signal, grace_ms, &reason)
            }
            Request::Kill { reason } => self.workload.kill(&reason),
            Request::Resize { cols, rows } => {
                let resized = self.workload.master().map(|fd| pty::resize(fd, cols, rows));
                if !matches!(resized, Some(Ok(()))) {
                    return refuse("no_terminal", "the workload has no terminal");
                }
            }
            Request::StdinEnd => {
                self.workload.stdin.end();
                self.spread(News { credit: true, ..News::default() });
            }
            Request::Deadline { timeout_ms } => self.workload.set_timeout(timeout_ms),
            Request::Announce { message } => {
                self.workload.announce(&message);
                self.spread(News { console: true, ..News::default() });
            }
            Request::Claim => {
                if let Err(error) = self.workload.claim() {
                    return refuse("claim", &chain(&error));
                }
                self.spread(News { state: true, ..News::default() });
            }
            Request::Release if self.workload.phase() == Phase::Exited => self.released = true,
            Request::Release => return refuse("running", "the workload has not ended"),
        }
        Reply::Done
    }

    fn has_authority(&self, index: usize) -> bool {
        self.connections[index].epoch.is_some_and(|epoch| epoch >= self.epoch)
    }

    /// Marks what every subscriber has to be told.
    fn spread(&mut self, news: News) {
        for connection in &mut self.connections {
            connection.news.state |= news.state;
            connection.news.console |= news.console;
            connection.news.credit |= news.credit;
        }
    }

    /// Tells subscribers who have taken what came before.
    fn tell(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            if !connection.subscribed || !connection.is_idle() || connection.news == News::default()
            {
                continue;
            }
            // The state says everything that the others would.
            let (state, credit) = (self.state(), self.workload.credit());
            let connection = &mut self.connections[index];
            let news = std::mem::take(&mut connection.news);
            if news.state {
                connection.send(&Reply::State(Box::new(state)));
                continue;
            }
            if news.console {
                connection.send(&Reply::Console { next: state.console_next });
            }
            if news.credit {
                connection.send(&credit);
            }
        }
    }

    fn state(&self) -> State {
        let work = &self.workload;
        State {
            version: VERSION,
            iid: work.launch.iid.clone(),
            phase: work.phase(),
            pid: work.pid(),
            started_at_ms: work.started_at_ms,
            exit: work.exit.clone(),
            console_next: work.spool_next(),
            stdin_next: work.stdin.next(),
            stdin_credit: work.stdin.credit() as u64,
            stdin_open: work.stdin.is_open(),
            tty: work.launch.tty.is_some(),
            warm: work.launch.warm,
        }
    }
}

fn read_launch() -> Result<Launch, SysError> {
    let path = Path::new(crate::launch::FILE);
    let failed = |source| SysError::io("read", path, source);
    let bytes = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn refuse(code: &str, message: &str) -> Reply {
    Reply::Error { code: code.to_owned(), message: message.to_owned() }
}
