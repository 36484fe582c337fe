//! The workload from the shim's side: how far it has come, and what follows from what was seen.
//!
//! ```text
//!   launching --program runs--> running --first process ended--> ending --nothing left--> exited
//!        \--a step failed, or it ended at once------------------^
//! ```
//! `stop` and `kill` change no phase by themselves: only the death of the first process does.

mod claimed;
mod memory;
mod output;
mod pace;
mod unsupported;
mod verdict;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Deserialize;

use crate::child::{self, Child};
use crate::exit::{self, Exit};
use crate::launch::{Confinement, Launch};
use crate::protocol::{Phase, Reply};
use crate::runtime::{Runtime, Slack};
use crate::spool::{Stream, Writer};
use crate::stdin::Stdin;
use claimed::open_spool;
use memory::Memory;
use output::OUTPUT_BYTES_MAX;
use pace::Pace;
use sodium_sys::cgroup::Usage;
use sodium_sys::error::chain;
use sodium_sys::namespace::Network;
use sodium_sys::process::{self, Ended};
use sodium_sys::{SysError, clock, poll};
use unsupported::Unsupported;

/// A process outside the group may hold our pipe open after everything inside has ended; it is
/// waited for this long, then its output is no longer ours.
const DRAIN_MS: u64 = 2_000;
/// How often the group is killed again while it is not empty.
const KILL_AGAIN_MS: u64 = 2;
/// How often a full or broken disk is asked again to take the exit.
const STORE_AGAIN_MS: u64 = 1_000;
/// How often the workload is looked for among bubblewrap's processes, once its program runs.
const PROBE_MS_MIN: u64 = 2;
const PROBE_MS_MAX: u64 = 64;
/// That the time is nearly over is said so long before, if there is that much.
const WARN_BEFORE_MS: u64 = 60_000;
/// A line of its status is shorter than this.
const STATUS_BYTES_MAX: usize = 4096;
/// bubblewrap's init is the first process of its pid namespace, and forks the workload first of all.
const WORKLOAD_INNER_PID: u32 = 2;

#[derive(Debug)]
pub(super) struct Workload {
    pub launch: Launch,
    pub stdin: Stdin,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub failure: Option<OwnedFd>,
    status: Option<OwnedFd>,
    pub started_at_ms: Option<u64>,
    pub exit: Option<Exit>,
    /// None, for what is nobody's yet.
    spool: Option<Writer>,
    /// What the program of a guest begins with if it could not become what it was claimed for.
    secret: Option<String>,
    life: Life,
    /// The process we forked: the workload itself, or bubblewrap around it.
    child_pid: u32,
    /// The workload's first process, once known.
    main: Option<Main>,
    terminal: Option<OwnedFd>,
    room: Option<OwnedFd>,
    launched_boot_ms: u64,
    launched_at_ms: u64,
    ending: Ending,
    wrapper: Wrapper,
    /// While runsc has not returned.
    runtime: Option<Runtime>,
    unsupported: Option<Unsupported>,
    failed: Option<(String, String)>,
    stderr_tail: Vec<u8>,
    buffer: Vec<u8>,
    /// Whether the pipe of stdout, and of stderr, was grown.
    grown: [bool; 2],
    pace: Option<Pace>,
    memory: Memory,
    slack: Slack,
    /// What the kernel had counted, and where the console ended, before it was anybody's.
    before: Usage,
    console_from: u64,
}

#[derive(Debug)]
struct Main {
    pid: u32,
    pidfd: OwnedFd,
}

/// Where the workload is in its life. Later ones never go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Launching,
    Running,
    /// The process we forked has ended like this; what it left behind is being killed.
    Ending {
        ended: Ended,
        since_boot_ms: u64,
    },
    /// The exit is known and waits for a disk that takes it.
    Storing {
        again_boot_ms: u64,
    },
    Exited,
}

/// That the workload is to end, and by when.
#[derive(Debug, Default)]
struct Ending {
    reason: Option<String>,
    /// Sent to the first process as soon as that is known.
    signal_due: Option<i32>,
    sent: Option<i32>,
    kill_at_boot_ms: Option<u64>,
    timeout_at_boot_ms: Option<u64>,
    /// When it is said that the time is nearly over.
    warn_at_boot_ms: Option<u64>,
    timed_out: bool,
    killed: bool,
}

/// What bubblewrap has told.
#[derive(Debug, Default)]
struct Wrapper {
    text: String,
    init_pid: Option<u32>,
    /// Only told when the workload's program ran.
    exit_code: Option<i32>,
    probe_boot_ms: Option<u64>,
    /// runsc ended without a sandbox.
    refused: bool,
}

/// A line of bubblewrap's status.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StatusLine {
    child_pid: Option<u32>,
    exit_code: Option<i32>,
}

impl Ending {
    /// Of what was launched then, and has so long.
    fn of(timeout_ms: Option<u64>, launched_boot_ms: u64) -> Self {
        let at = |timeout: u64| launched_boot_ms.saturating_add(timeout);
        let early = |timeout: u64| timeout.checked_sub(WARN_BEFORE_MS).filter(|left| *left > 0);
        Self {
            timeout_at_boot_ms: timeout_ms.map(at),
            warn_at_boot_ms: timeout_ms.and_then(early).map(at),
            ..Self::default()
        }
    }
}

impl Workload {
    /// Starts it. A failure to start is an exit like any other, told and stored; an error means
    /// that there is not even a console to tell it on.
    pub(super) fn start(launch: Launch, network: Option<Network>) -> Result<Self, SysError> {
        let now = clock::boot_ms();
        let launched_at_ms = clock::wall_ms();
        let ending = Ending::of(launch.timeout_ms, now);
        let runtime = Runtime::expect(&launch)?;
        let unsupported = match &launch.confinement {
            Confinement::Gvisor { user_log, .. } => Some(Unsupported::listen(user_log)?),
            Confinement::Bubblewrap { .. } | Confinement::Itself { .. } => None,
        };
        let memory = if launch.warm { Memory::default() } else { Memory::watch(&launch.group) };
        let slack = Slack::of(&launch.confinement);
        let started = child::start(&launch, network);
        // Beside the child's own way to its program. Without a console it dies with us.
        let spool = if launch.warm { None } else { Some(open_spool(&launch)?) };
        let is_tty = launch.tty.is_some();
        let pace = launch.output_bytes_per_second.map(Pace::new);
        let mut work = Self {
            launch,
            stdin: Stdin::new(None, is_tty),
            stdout: None,
            stderr: None,
            failure: None,
            status: None,
            started_at_ms: None,
            exit: None,
            spool,
            secret: None,
            life: Life::Launching,
            child_pid: 0,
            main: None,
            terminal: None,
            room: None,
            launched_boot_ms: now,
            launched_at_ms,
            ending,
            wrapper: Wrapper::default(),
            runtime,
            unsupported,
            failed: None,
            stderr_tail: Vec::new(),
            buffer: vec![0; OUTPUT_BYTES_MAX],
            grown: [false; 2],
            pace,
            memory,
            slack,
            before: Usage::default(),
            console_from: 0,
        };
        work.console_from = work.spool_next();
        match started {
            Ok(child) => work.connect(child, is_tty),
            Err(error) => {
                work.failed = Some(("fork".to_owned(), chain(&error)));
                work.life = Life::Ending { ended: Ended::Exited(127), since_boot_ms: now };
            }
        }
        Ok(work)
    }

    fn connect(&mut self, child: Child, is_tty: bool) {
        self.child_pid = child.pid;
        self.stdin = Stdin::new(Some(child.stdio.stdin), is_tty);
        self.stdout = Some(child.stdio.stdout);
        self.stderr = child.stdio.stderr;
        self.failure = Some(child.failure);
        self.status = child.status;
        self.terminal = child.terminal;
        self.room = child.room;
    }

    pub(super) fn phase(&self) -> Phase {
        match self.life {
            Life::Launching => Phase::Launching,
            Life::Running if self.ending.reason.is_some() => Phase::Stopping,
            Life::Running => Phase::Running,
            Life::Ending { .. } | Life::Storing { .. } => Phase::Stopping,
            Life::Exited => Phase::Exited,
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.main.as_ref().map(|main| main.pid)
    }

    pub(super) fn spool_next(&self) -> u64 {
        self.spool.as_ref().map_or(0, Writer::next)
    }

    pub(super) fn credit(&self) -> Reply {
        let (next, credit) = (self.stdin.next(), self.stdin.credit() as u64);
        Reply::Credit { next, credit, open: self.stdin.is_open() }
    }

    /// The terminal, to set its size.
    pub(super) fn master(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.as_ref().filter(|_| self.launch.tty.is_some()).map(AsFd::as_fd)
    }

    // What is asked of it.

    pub(super) fn stop(&mut self, signal: i32, grace_ms: u64, reason: &str) {
        let kill_at = clock::boot_ms().saturating_add(grace_ms);
        // Shorten, never extend.
        let earlier = self.ending.kill_at_boot_ms.map_or(kill_at, |at| at.min(kill_at));
        self.ending.kill_at_boot_ms = Some(earlier);
        if self.ending.reason.is_none() {
            self.ending.reason = Some(reason.to_owned());
            self.ending.signal_due = Some(signal);
            // Frozen, it would not see the signal. Where nothing can be frozen, nothing is.
            let _ = self.launch.group.freeze(false);
        }
    }

    pub(super) fn kill(&mut self, reason: &str) {
        self.ending.reason.get_or_insert_with(|| reason.to_owned());
        self.ending.kill_at_boot_ms = Some(0);
    }

    pub(super) fn set_timeout(&mut self, timeout_ms: Option<u64>) {
        let Ending { timeout_at_boot_ms, warn_at_boot_ms, .. } =
            Ending::of(timeout_ms, self.launched_boot_ms);
        self.launch.timeout_ms = timeout_ms;
        self.ending.timeout_at_boot_ms = timeout_at_boot_ms;
        // What has been said is not said again, unless there is more time again.
        self.ending.warn_at_boot_ms = warn_at_boot_ms.filter(|at| *at > clock::boot_ms());
    }

    // What is seen of it.

    /// A child said what failed, or the last exec closed the pipe.
    pub(super) fn read_failure(&mut self) {
        let Some(pipe) = self.failure.take() else { return };
        self.failed = child::read_failure(pipe);
        if self.failed.is_some() {
            return;
        }
        match self.launch.confinement {
            Confinement::Itself { .. } => {
                self.found_main(self.child_pid);
                self.runs();
            }
            // The workload runs, or bubblewrap has ended without it.
            Confinement::Bubblewrap { .. } => self.wrapper.probe_boot_ms = Some(clock::boot_ms()),
            // runsc has begun, and will return.
            Confinement::Gvisor { .. } => (),
        }
    }

    /// Reads what bubblewrap says. Returns whether there was anything.
    fn read_status(&mut self) -> bool {
        let Some(fd) = &self.status else { return false };
        let mut chunk = [0; 512];
        match poll::read_some(fd.as_fd(), &mut chunk) {
            Ok(Some(count @ 1..)) if self.wrapper.text.len() < STATUS_BYTES_MAX => {
                self.wrapper.text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => {
                self.status = None;
                return false;
            }
        }
        // It writes a line in several pieces.
        while let Some((line, rest)) = self.wrapper.text.split_once('\n') {
            if let Ok(line) = serde_json::from_str::<StatusLine>(line) {
                self.wrapper.init_pid = line.child_pid.or(self.wrapper.init_pid);
                self.wrapper.exit_code = line.exit_code.or(self.wrapper.exit_code);
            }
            self.wrapper.text = rest.to_owned();
        }
        true
    }

    /// Reaps whatever has ended: ours, and what was left to us.
    pub(super) fn reap(&mut self) {
        while let Some((pid, ended)) = process::reap_any() {
            let alive = matches!(self.life, Life::Launching | Life::Running);
            if pid == self.child_pid && self.runtime.is_some() {
                self.returned(ended);
                continue;
            }
            if let Some(runtime) = &mut self.runtime {
                runtime.note(pid, ended);
            }
            if pid == self.child_pid && alive {
                self.life = Life::Ending { ended, since_boot_ms: clock::boot_ms() };
                // Whoever still holds the terminal is about to be killed.
                self.terminal = None;
            }
        }
    }

    /// runsc has returned: with a sandbox that is our child now, or without one.
    fn returned(&mut self, ended: Ended) {
        let (Some(runtime), Confinement::Gvisor { pid_file, .. }) =
            (self.runtime.take(), &self.launch.confinement)
        else {
            return;
        };
        let since_boot_ms = clock::boot_ms();
        let sandbox = runtime.sandbox(pid_file).filter(|_| ended == Ended::Exited(0));
        match sandbox {
            Some((pid, None)) => {
                self.child_pid = pid;
                self.found_main(pid);
                self.runs();
            }
            Some((pid, Some(ended))) => {
                self.child_pid = pid;
                self.runs();
                self.life = Life::Ending { ended, since_boot_ms };
            }
            None => {
                self.wrapper.refused = true;
                self.life = Life::Ending { ended, since_boot_ms };
            }
        }
    }

    /// Where runsc delivers the terminal.
    pub(super) fn terminal_listener(&self) -> Option<BorrowedFd<'_>> {
        self.runtime.as_ref().and_then(Runtime::listener)
    }

    /// Where runsc says what it does not have.
    pub(super) fn user_log(&self) -> Option<BorrowedFd<'_>> {
        self.unsupported.as_ref().map(Unsupported::fd)
    }

    pub(super) fn read_user_log(&mut self) {
        if let Some(unsupported) = &mut self.unsupported {
            unsupported.read();
        }
    }

    /// Where the kernel tells that there is no memory left.
    pub(super) fn memory_event(&self) -> Option<BorrowedFd<'_>> {
        self.memory.fd()
    }

    pub(super) fn heard_of_memory(&mut self) {
        self.memory.heard(clock::boot_ms());
    }

    /// From now on the console is that terminal.
    pub(super) fn take_terminal(&mut self) {
        let (Some(size), Some(runtime)) = (self.launch.tty, &mut self.runtime) else { return };
        let Some(master) = runtime.take_terminal(size) else { return };
        let ready = poll::set_nonblocking(master.as_fd()).map(|()| master.try_clone());
        if let Ok(Ok(copy)) = ready {
            self.stdin.connect(copy);
            self.stdout = Some(master);
        }
    }

    /// Draws the conclusions that time and events allow.
    pub(super) fn advance(&mut self, now: u64) {
        if self.ending.warn_at_boot_ms.is_some_and(|at| at <= now) {
            self.ending.warn_at_boot_ms = None;
            let seconds = self.launch.timeout_ms.unwrap_or(0) / 1000;
            self.announce(&format!("60 s are left of the time limit of {seconds} s"));
        }
        if self.ending.timeout_at_boot_ms.is_some_and(|at| at <= now) {
            self.ending.timeout_at_boot_ms = None;
            self.time_out();
        }
        if self.memory.look(&self.launch.group, now) {
            self.kill_all();
        }
        if let Some(signal) = self.ending.signal_due
            && let Some(main) = &self.main
        {
            self.ending.signal_due = None;
            self.ending.sent = Some(signal);
            // An end that is already there is what was wanted.
            let _ = process::signal(main.pidfd.as_fd(), signal);
        }
        match self.life {
            Life::Launching => {
                self.probe(now);
                self.kill_when_due(now);
            }
            Life::Running => {
                self.slack.apply_when_due(now, &self.launch.group);
                self.kill_when_due(now);
            }
            Life::Ending { ended, since_boot_ms } => self.end(ended, since_boot_ms, now),
            Life::Storing { again_boot_ms } if again_boot_ms <= now => self.store(now),
            Life::Storing { .. } | Life::Exited => (),
        }
    }

    /// When [`Workload::advance`] has something to do even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let now = clock::boot_ms();
        let kill_at = self.ending.kill_at_boot_ms;
        match self.life {
            Life::Launching | Life::Running => {
                let probe = self.wrapper.probe_boot_ms.filter(|_| self.life == Life::Launching);
                let paced = self.pace.and_then(|pace| pace.waits_until(now));
                let warn_at = self.ending.warn_at_boot_ms;
                let memory = self.memory.next_look();
                [
                    self.ending.timeout_at_boot_ms,
                    warn_at,
                    kill_at,
                    probe,
                    paced,
                    memory,
                    self.slack.due(),
                ]
                .into_iter()
                .flatten()
                .min()
            }
            Life::Ending { .. } => Some(now + KILL_AGAIN_MS),
            Life::Storing { again_boot_ms } => Some(again_boot_ms),
            Life::Exited => None,
        }
    }

    fn time_out(&mut self) {
        if !matches!(self.life, Life::Launching | Life::Running) {
            return;
        }
        self.ending.timed_out = true;
        let seconds = self.launch.timeout_ms.unwrap_or(0) / 1000;
        self.announce(&format!("time limit of {seconds} s reached, stopping"));
        self.stop(self.launch.stop_signal, self.launch.stop_grace_ms, "timeout");
    }

    /// Looks for the workload among what bubblewrap has started, once its program runs.
    fn probe(&mut self, now: u64) {
        let Some(due) = self.wrapper.probe_boot_ms else { return };
        if due > now {
            return;
        }
        let waited = now.saturating_sub(self.launched_boot_ms);
        self.wrapper.probe_boot_ms = Some(now + (waited / 2).clamp(PROBE_MS_MIN, PROBE_MS_MAX));
        // It is said in several pieces; waiting for each would wake us for nothing.
        while self.wrapper.init_pid.is_none() && self.read_status() {}
        let Some(init) = self.wrapper.init_pid else { return };
        // What the workload left behind when it ended is handed to bubblewrap's init as well, so its
        // children alone do not tell which of them is the workload.
        let is_workload = |pid: &u32| process::inner_pid(*pid) == Some(WORKLOAD_INNER_PID);
        if let Some(pid) = process::children(init).into_iter().find(is_workload) {
            self.found_main(pid);
            // Looked at again now that it is open: the number could have become another's. One that is not seen then
            // is looked for again.
            if !is_workload(&pid) || !process::children(init).contains(&pid) {
                self.main = None;
                return;
            }
            self.runs();
        }
    }

    fn found_main(&mut self, pid: u32) {
        // Gone already: then its end is on its way to us.
        if let Ok(pidfd) = process::open_pidfd(pid) {
            self.main = Some(Main { pid, pidfd });
        }
    }

    fn runs(&mut self) {
        self.wrapper.probe_boot_ms = None;
        if self.life == Life::Launching {
            self.life = Life::Running;
            self.started_at_ms = Some(clock::wall_ms());
            self.slack.begin(clock::boot_ms());
        }
    }

    fn kill_when_due(&mut self, now: u64) {
        if self.ending.kill_at_boot_ms.is_some_and(|at| at <= now) {
            self.ending.kill_at_boot_ms = Some(now + KILL_AGAIN_MS);
            self.ending.killed = true;
            self.kill_all();
        }
    }

    /// Kills everything that descends from us, group or no group.
    fn kill_all(&self) {
        // A group that cannot be killed leaves the children, and is tried again.
        let _ = self.launch.group.kill();
        for pid in process::children(std::process::id()) {
            // Our own unreaped children: their ids cannot have been given to anybody else.
            if let Ok(pidfd) = process::open_pidfd(pid) {
                let _ = process::signal(pidfd.as_fd(), 9);
            }
        }
    }

    /// The first process is gone: nothing of it may be left, and nothing it said be lost.
    fn end(&mut self, ended: Ended, since: u64, now: u64) {
        self.reap();
        self.pace = None;
        let left =
            self.launch.group.is_populated() || !process::children(std::process::id()).is_empty();
        if left {
            self.kill_all();
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.read_output(stream) {}
        }
        if self.failure.is_some() {
            self.read_failure();
        }
        while self.read_status() {}
        let silent = self.stdout.is_none() && self.stderr.is_none();
        if silent || now.saturating_sub(since) > DRAIN_MS {
            (self.stdout, self.stderr) = (None, None);
            self.stdin.close();
            self.conclude(ended);
            self.store(now);
        }
    }

    fn store(&mut self, now: u64) {
        let Some(exit) = &self.exit else { return };
        match exit::store(exit, &self.launch.exit_path) {
            Ok(()) => {
                self.spool.iter().for_each(Writer::sync);
                self.life = Life::Exited;
            }
            Err(_) => self.life = Life::Storing { again_boot_ms: now + STORE_AGAIN_MS },
        }
    }
}
