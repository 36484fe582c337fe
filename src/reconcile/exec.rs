//! A program inside what runs, from the side of whoever asked for it. Dropping the session ends the
//! program.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use uuid::Uuid;

use crate::reconcile::blocking;
use crate::reconcile::world::World;
use sodium_model::{Sandbox, Spec};
use sodium_runtime::{DriverError, ExecOrder};
use sodium_shim::protocol::{Frame, Request, Told, control, stdin, take_frame};

/// Programs at once in one sandbox, and in all: each costs the host a process or two.
const SANDBOX_COUNT_MAX: usize = 16;
const COUNT_MAX: usize = 128;
/// Beside those, for the host's own command line, which clients cannot keep out.
const OWNER_SANDBOX_COUNT: usize = 4;
const OWNER_COUNT: usize = 16;
/// In place of a count: nobody may enter.
const KEPT_OUT: usize = usize::MAX;
/// Input sent in one frame.
const INPUT_CHUNK_BYTES: usize = 16 * 1024;

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    pub command: Vec<String>,
    /// Beside the sandbox's own environment.
    pub env: BTreeMap<String, String>,
    pub work_dir: Option<String>,
    /// Columns and rows of a terminal, or pipes.
    pub tty: Option<(u16, u16)>,
}

/// Whose places it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    Clients,
    /// Who owns the daemon, over its local socket.
    Owner,
}

impl Share {
    /// How many there may be, in all and in one sandbox.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::Clients => (COUNT_MAX, SANDBOX_COUNT_MAX),
            Self::Owner => (COUNT_MAX + OWNER_COUNT, SANDBOX_COUNT_MAX + OWNER_SANDBOX_COUNT),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("the sandbox is not running")]
    NotRunning,
    #[error("the sandbox is paused; resume it first")]
    Paused,
    #[error("checkpoint in progress; try again in a moment")]
    Keeping,
    #[error("{0} programs are being run already; wait for one to end")]
    TooMany(usize),
    /// What it runs by is not there, or cannot do this.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("talk to the program's process")]
    Talk(#[from] io::Error),
}

/// What there is to know of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Began,
    Output {
        is_stderr: bool,
        bytes: Vec<u8>,
    },
    /// The program took some of its input.
    Taken,
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// It never ran.
    Failed {
        stage: String,
        message: String,
    },
    /// The process behind it is gone, and nobody knows why.
    Lost,
}

/// How many run, in each sandbox.
#[derive(Debug, Default)]
pub struct Sessions {
    counts: Mutex<HashMap<Uuid, usize>>,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
struct Place {
    sessions: Arc<Sessions>,
    uid: Uuid,
}

/// A program that runs, or is about to.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Input that waits for room.
    waiting: Vec<u8>,
    end: InputEnd,
    next: u64,
    room_until: u64,
    _place: Place,
}

/// What becomes of the program's stdin. Later ones never go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    Open,
    /// To be closed behind what waits.
    Due,
    Sent,
}

impl Sessions {
    fn enter(self: &Arc<Self>, uid: Uuid, share: Share) -> Result<Place, ExecError> {
        let (max, sandbox_max) = share.bounds();
        let mut counts = self.lock();
        if counts.get(&uid) == Some(&KEPT_OUT) {
            return Err(ExecError::Keeping);
        }
        if counts.values().filter(|count| **count != KEPT_OUT).sum::<usize>() >= max {
            return Err(ExecError::TooMany(max));
        }
        let count = counts.entry(uid).or_default();
        if *count >= sandbox_max {
            return Err(ExecError::TooMany(sandbox_max));
        }
        *count += 1;
        Ok(Place { sessions: Arc::clone(self), uid })
    }

    /// Sees to it that nothing is run in this sandbox for as long as what comes back is kept. `None`:
    /// something is.
    pub(super) fn keep_out(self: &Arc<Self>, uid: Uuid) -> Option<KeptOut> {
        let mut counts = self.lock();
        if counts.contains_key(&uid) {
            return None;
        }
        counts.insert(uid, KEPT_OUT);
        Some(KeptOut { sessions: Arc::clone(self), uid })
    }

    /// Whether anything runs in this sandbox beside its workload.
    pub(super) fn any(&self, uid: Uuid) -> bool {
        self.lock().contains_key(&uid)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.counts.lock().expect("nobody panics while holding the counts")
    }
}

/// Nobody may run anything in a sandbox.
#[derive(Debug)]
pub(super) struct KeptOut {
    sessions: Arc<Sessions>,
    uid: Uuid,
}

impl Drop for KeptOut {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.uid);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sessions.lock();
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Starts a program in a sandbox that runs.
pub(super) async fn start(
    world: Arc<World>,
    sandbox: Arc<Sandbox>,
    program: Program,
    share: Share,
) -> Result<Session, ExecError> {
    if sandbox.power.paused {
        return Err(ExecError::Paused);
    }
    let place = world.sessions.enter(sandbox.uid, share)?;
    let stream = blocking(move || {
        let instance = sandbox.live().ok_or(ExecError::NotRunning)?;
        let driver = world.driver(instance.spec.isolation).ok_or(ExecError::NotRunning)?;
        // As it was started, not as it was declared since.
        let spec: &Spec = &instance.spec;
        driver
            .exec(
                &instance.iid,
                &ExecOrder {
                    name: &sandbox.name,
                    uid: sandbox.uid,
                    spec,
                    host_uid: sandbox.host_uid,
                    command: &program.command,
                    env: &program.env,
                    work_dir: program.work_dir.as_deref(),
                    tty: program.tty,
                },
            )
            .map_err(|error| {
                // No shim, or one whose workload has not begun or has ended.
                match error {
                    DriverError::Shim { .. } | DriverError::Absent { .. } => ExecError::NotRunning,
                    DriverError::Refused(why) => ExecError::Refused(why),
                    error @ (DriverError::Missing { .. }
                    | DriverError::Spawn { .. }
                    | DriverError::Host { .. }
                    | DriverError::Exists { .. }) => ExecError::Driver(error),
                }
            })
    })
    .await?;
    stream.set_nonblocking(true)?;
    Ok(Session {
        stream: UnixStream::from_std(stream)?,
        buffer: Vec::new(),
        waiting: Vec::new(),
        end: InputEnd::Open,
        next: 0,
        room_until: 0,
        _place: place,
    })
}

impl Session {
    /// Waits for the next event. Cancel-safe: what was read stays.
    pub async fn next(&mut self) -> Event {
        loop {
            match take_frame(&mut self.buffer) {
                Ok(Some(Frame::Output { is_stderr, bytes })) => {
                    return Event::Output { is_stderr, bytes };
                }
                Ok(Some(Frame::Control(json))) => {
                    if let Ok(told) = serde_json::from_slice(&json) {
                        return self.heard(told);
                    }
                }
                Ok(Some(Frame::Stdin { .. })) => (),
                Ok(None) => match self.stream.read_buf(&mut self.buffer).await {
                    Ok(1..) => (),
                    Ok(0) | Err(_) => return Event::Lost,
                },
                Err(_) => return Event::Lost,
            }
        }
    }

    fn heard(&mut self, told: Told) -> Event {
        match told {
            Told::Began => Event::Began,
            Told::Credit { next, credit, open } => {
                self.room_until = next + credit;
                if !open {
                    self.close_input();
                }
                Event::Taken
            }
            Told::Ended { code, signal } => Event::Ended { code, signal },
            Told::Failed { stage, message } => Event::Failed { stage, message },
        }
    }

    /// Whether more input may be handed over: none waits.
    pub fn takes_input(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands over input. What the program has no room for waits, and goes on with [`Session::push`].
    pub async fn input(&mut self, bytes: &[u8]) {
        if self.end == InputEnd::Open {
            self.waiting.extend_from_slice(bytes);
        }
        self.push().await;
    }

    /// Closes stdin behind what was handed over.
    pub async fn end_input(&mut self) {
        if self.end == InputEnd::Open {
            self.end = InputEnd::Due;
        }
        self.push().await;
    }

    pub async fn resize(&mut self, cols: u16, rows: u16) {
        self.write(&control(&Request::Resize { cols, rows })).await;
    }

    /// Sends as much as there is room for. To be called after each event.
    pub async fn push(&mut self) {
        let mut frames = Vec::new();
        while !self.waiting.is_empty() && self.next < self.room_until {
            let room = usize::try_from(self.room_until - self.next).unwrap_or(usize::MAX);
            let count = self.waiting.len().min(room).min(INPUT_CHUNK_BYTES);
            frames.extend(stdin(self.next, &self.waiting[..count]));
            self.waiting.drain(..count);
            self.next += count as u64;
        }
        if self.end == InputEnd::Due && self.waiting.is_empty() {
            frames.extend(control(&Request::StdinEnd));
            self.end = InputEnd::Sent;
        }
        if !frames.is_empty() {
            self.write(&frames).await;
        }
    }

    /// A program that has ended takes nothing more; how it ended is still to be read.
    async fn write(&mut self, frames: &[u8]) {
        if self.stream.write_all(frames).await.is_err() {
            self.close_input();
        }
    }

    fn close_input(&mut self) {
        self.waiting.clear();
        self.end = InputEnd::Sent;
    }
}
