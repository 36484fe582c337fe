//! Following one shim: what it pushes becomes a look at its sandbox or a new head of its console;
//! what is asked of it goes the other way, input by credit.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::reconcile::queue::Queue;
use sodium_model::{Iid, SandboxName};
use sodium_shim::protocol::{
    Frame, Phase, Reply, Request, State, control, hello, stdin, take_frame,
};

/// A workload that has not read its input for this long is not going to be waited for.
const INPUT_WITHIN: Duration = Duration::from_secs(10);
/// Input sent in one frame.
const INPUT_CHUNK_BYTES: usize = 16 * 1024;
/// The first version of the protocol in which a shim says what it is told to.
const ANNOUNCE_SINCE: u32 = 2;
/// Inputs that wait behind one that is not read.
const INPUT_COUNT_MAX: usize = 16;

/// What the console of a sandbox has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The offset after the newest byte.
    pub next: u64,
    /// The instance that runs now.
    pub running: Option<Iid>,
}

/// Something to ask of the shim.
#[derive(Debug)]
pub enum Command {
    /// Hand these bytes to the workload; answered when all of them were taken.
    Input {
        bytes: Vec<u8>,
        reply: oneshot::Sender<Result<(), InputError>>,
    },
    InputEnd,
    /// Say something on the console.
    Announce(String),
    Resize {
        cols: u16,
        rows: u16,
    },
}

/// Why input was not taken, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    #[error("the sandbox is not running")]
    NotRunning,
    #[error("the program has closed its stdin")]
    Closed,
    #[error("the program does not read its stdin; {taken} of {sent} bytes were taken")]
    Full { taken: usize, sent: usize },
}

/// What following one instance takes.
#[derive(Debug)]
pub(super) struct Following {
    pub name: SandboxName,
    pub iid: Iid,
    pub epoch: u64,
    pub head: watch::Sender<Head>,
    pub inbox: mpsc::Receiver<Command>,
    pub queue: Arc<Queue>,
}

struct Input {
    bytes: Vec<u8>,
    sent: usize,
    /// Where its last byte will be followed, once all of it was sent.
    end: Option<u64>,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), InputError>>,
}

struct Link {
    about: Following,
    phase: Option<Phase>,
    /// Of the protocol, that the shim speaks.
    version: u32,
    inputs: VecDeque<Input>,
    /// Offset of the next byte to send; not known before the shim has told its own.
    next: Option<u64>,
    /// Offset up to which the shim has room.
    room_until: u64,
    open: bool,
    output: Vec<u8>,
}

/// Follows until the connection ends.
pub(super) async fn follow(stream: StdUnixStream, about: Following) {
    let mut link = Link {
        about,
        phase: None,
        version: 0,
        inputs: VecDeque::new(),
        next: None,
        room_until: 0,
        open: true,
        output: Vec::new(),
    };
    if let Err(error) = link.run(stream).await {
        debug!(sandbox = link.about.name.as_str(), %error, "connection to shim ended");
    }
    for input in link.inputs {
        // Whoever asked may have left.
        let _ = input.reply.send(Err(InputError::NotRunning));
    }
}

impl Link {
    async fn run(&mut self, stream: StdUnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let (mut reader, mut writer) = UnixStream::from_std(stream)?.into_split();
        writer.write_all(&control(&hello(self.about.epoch, true))).await?;
        let mut buffer = Vec::new();
        loop {
            let deadline = self.inputs.front().map(|input| input.deadline);
            // Each arm only waits; bytes read are in `buffer` whichever arm wins, and a command that
            // was not received stays in its channel.
            tokio::select! {
                count = reader.read_buf(&mut buffer) => {
                    if count? == 0 {
                        return Ok(());
                    }
                }
                Some(command) = self.about.inbox.recv(), if self.inputs.len() < INPUT_COUNT_MAX => {
                    self.command(command);
                }
                () = sleep_until(deadline) => self.expire(),
            }
            while let Some(frame) = take_frame(&mut buffer).map_err(io::Error::other)? {
                if let Frame::Control(json) = frame
                    && let Ok(reply) = serde_json::from_slice(&json)
                {
                    self.heard(reply);
                }
            }
            self.send_input();
            if !self.output.is_empty() {
                writer.write_all(&std::mem::take(&mut self.output)).await?;
            }
        }
    }

    fn heard(&mut self, reply: Reply) {
        match reply {
            Reply::State(state) => self.heard_state(&state),
            Reply::Console { next } => self.set_head(Some(next)),
            Reply::Credit { next, credit, open } => self.heard_credit(next, credit, open),
            Reply::Done => (),
            Reply::Error { code, message } => {
                debug!(sandbox = self.about.name.as_str(), code, message, "shim refused");
            }
        }
    }

    fn heard_state(&mut self, state: &State) {
        self.heard_credit(state.stdin_next, state.stdin_credit, state.stdin_open);
        self.version = state.version;
        let before = self.phase.replace(state.phase);
        // That it is being launched is what the loop has just ordered.
        let news = before != Some(state.phase) && state.phase != Phase::Launching;
        if news {
            self.about.queue.push(&self.about.name);
        }
        self.set_head(Some(state.console_next));
    }

    fn heard_credit(&mut self, next: u64, credit: u64, open: bool) {
        // Frames may be on their way that this answer does not know of, so our own offset stands.
        self.next.get_or_insert(next);
        (self.room_until, self.open) = (next + credit, open);
        while self.inputs.front().is_some_and(|input| input.end.is_some_and(|end| end <= next)) {
            if let Some(input) = self.inputs.pop_front() {
                let _ = input.reply.send(Ok(()));
            }
        }
        if !open {
            for input in self.inputs.drain(..) {
                let _ = input.reply.send(Err(InputError::Closed));
            }
        }
    }

    fn set_head(&self, next: Option<u64>) {
        let alive = matches!(self.phase, Some(Phase::Launching | Phase::Running | Phase::Stopping));
        let running = alive.then(|| self.about.iid.clone());
        self.about.head.send_if_modified(|head| {
            let before = head.clone();
            head.next = next.unwrap_or(head.next).max(head.next);
            head.running = running;
            *head != before
        });
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Input { bytes, reply } => {
                let deadline = Instant::now() + INPUT_WITHIN;
                let ended = matches!(self.phase, Some(Phase::Exited));
                if ended {
                    let _ = reply.send(Err(InputError::NotRunning));
                } else if self.open {
                    self.inputs.push_back(Input { bytes, sent: 0, end: None, deadline, reply });
                } else {
                    let _ = reply.send(Err(InputError::Closed));
                }
            }
            Command::Announce(message) if self.version >= ANNOUNCE_SINCE => {
                self.output.extend(control(&Request::Announce { message }));
            }
            Command::Announce(_) => (),
            Command::InputEnd => self.output.extend(control(&Request::StdinEnd)),
            Command::Resize { cols, rows } => {
                self.output.extend(control(&Request::Resize { cols, rows }));
            }
        }
    }

    /// Sends as much as the shim has room for.
    fn send_input(&mut self) {
        let Some(mut next) = self.next else { return };
        for input in &mut self.inputs {
            while input.sent < input.bytes.len() && next < self.room_until {
                let room = usize::try_from(self.room_until - next).unwrap_or(usize::MAX);
                let end = input.bytes.len().min(input.sent + room.min(INPUT_CHUNK_BYTES));
                let chunk = &input.bytes[input.sent..end];
                self.output.extend(stdin(next, chunk));
                next += chunk.len() as u64;
                input.sent = end;
            }
            if input.sent < input.bytes.len() {
                break;
            }
            input.end.get_or_insert(next);
        }
        self.next = Some(next);
    }

    fn expire(&mut self) {
        if let Some(input) = self.inputs.pop_front() {
            let (taken, sent) = (input.sent, input.bytes.len());
            let _ = input.reply.send(Err(InputError::Full { taken, sent }));
        }
    }
}

/// Waits for a deadline, or for ever.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
