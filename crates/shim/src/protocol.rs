//! Frames between daemon and shim.
//!
//! `u32 length | u8 kind | payload`, little endian, the length counting kind and payload. Control
//! payloads are JSON objects whose unknown fields are ignored, because a shim outlives the daemon
//! that started it. Data payloads are raw bytes behind an absolute u64 offset, so that sending the
//! same bytes again changes nothing.

use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// The newest version this build speaks. Fields are added within a version; verbs are added with one.
pub const VERSION: u32 = 2;
/// The oldest. Shims live for as long as what they watch, so this moves when nobody can have one of before.
pub const OLDEST: u32 = 1;
/// The code with which a peer is refused that speaks none of those.
pub const UNSUPPORTED_VERSION: &str = "unsupported_version";
/// Longest frame accepted. Larger ones are a broken peer.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 + 16;
/// Input bytes the shim holds for a workload that does not read.
pub const STDIN_BYTES_MAX: usize = 32 * 1024;

const KIND_CONTROL: u8 = 1;
const KIND_STDIN: u8 = 2;
const KIND_OUTPUT: u8 = 3;
const HEADER_BYTES: usize = 4;

/// What the daemon asks. All are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Opens a connection. A lower epoch than the highest seen is refused: that daemon was replaced.
    Hello {
        /// The newest version that the daemon speaks,
        version: u32,
        /// and the oldest, if that is another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oldest: Option<u32>,
        epoch: u64,
        /// Whether state, console head and credit are pushed from now on.
        subscribe: bool,
    },
    Status,
    /// Signals the workload's first process, and kills everything when the grace is over. A later
    /// stop may shorten the grace, never extend it.
    Stop {
        signal: i32,
        grace_ms: u64,
        reason: String,
    },
    /// Kills everything now.
    Kill {
        reason: String,
    },
    Resize {
        cols: u16,
        rows: u16,
    },
    /// Closes stdin behind what was already sent.
    StdinEnd,
    /// Counts the run timeout from the start of the workload; `None` runs forever.
    Deadline {
        timeout_ms: Option<u64>,
    },
    /// Makes what was started ahead somebody's: the file in the run directory says whose. Refused, it is
    /// good for nothing any more.
    Claim,
    /// Says something on the console, as ours. Since version 2.
    Announce {
        message: String,
    },
    /// Ends the shim. Only after the exit: before it, this is refused.
    Release,
}

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Everything there is to know. Never a difference to an earlier one.
    State(Box<State>),
    /// The console now ends at this offset.
    Console { next: u64 },
    /// Stdin was accepted up to `next`, and this many bytes more may be sent.
    Credit { next: u64, credit: u64, open: bool },
    /// The request was carried out.
    Done,
    /// The request was refused.
    Error { code: String, message: String },
}

/// The shim's whole state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    pub iid: String,
    pub phase: Phase,
    /// The workload's first process, as the host numbers it.
    pub pid: Option<u32>,
    pub started_at_ms: Option<u64>,
    #[serde(default)]
    pub exit: Option<Exit>,
    pub console_next: u64,
    pub stdin_next: u64,
    pub stdin_credit: u64,
    pub stdin_open: bool,
    pub tty: bool,
    /// Started ahead, and not claimed yet.
    #[serde(default)]
    pub warm: bool,
}

/// How far the workload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The runtime is at work; the workload's program does not run yet.
    Launching,
    Running,
    /// Asked to end, or ended while what it left behind is being killed.
    Stopping,
    /// Nothing of it is left, and the exit is on disk.
    Exited,
}

/// What is said of a program that was started inside what runs. Its output comes as frames of its own;
/// `StdinEnd` and `Resize` are what may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told {
    /// It runs.
    Began,
    /// Stdin was accepted up to `next`, and this many bytes more may be sent.
    Credit { next: u64, credit: u64, open: bool },
    /// It ended, and all its output was sent before.
    Ended { code: Option<i32>, signal: Option<i32> },
    /// It never ran.
    Failed { stage: String, message: String },
}

/// One frame, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A JSON object.
    Control(Vec<u8>),
    Stdin {
        offset: u64,
        bytes: Vec<u8>,
    },
    Output {
        is_stderr: bool,
        bytes: Vec<u8>,
    },
}

/// The peer does not speak this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame of {0} bytes, the limit is {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("frame of {0} bytes is too short for its kind")]
    TooShort(usize),
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    #[error("output of unknown stream {0}")]
    Stream(u8),
}

/// A daemon's first words.
pub fn hello(epoch: u64, subscribe: bool) -> Request {
    let oldest = (OLDEST != VERSION).then_some(OLDEST);
    Request::Hello { version: VERSION, oldest, epoch, subscribe }
}

/// The newest version that both speak, the other from `oldest` to `newest`.
pub fn agree(oldest: u32, newest: u32) -> Option<u32> {
    let common = newest.min(VERSION);
    (common >= oldest.max(OLDEST)).then_some(common)
}

/// Encodes a control message.
pub fn control(message: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(message).expect("messages have string keys and no maps");
    frame(KIND_CONTROL, &[&json])
}

/// Encodes input.
pub fn stdin(offset: u64, bytes: &[u8]) -> Vec<u8> {
    frame(KIND_STDIN, &[&offset.to_le_bytes(), bytes])
}

/// Encodes output.
pub fn output(is_stderr: bool, bytes: &[u8]) -> Vec<u8> {
    frame(KIND_OUTPUT, &[&[u8::from(is_stderr)], bytes])
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let header = u32::try_from(length).expect("frames are far below 4 GiB").to_le_bytes();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend(header);
    bytes.push(kind);
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Takes one frame off the front of `buffer`, if a whole one is there.
pub fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Frame>, FrameError> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    if length == 0 {
        return Err(FrameError::TooShort(length));
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    let kind = buffer[HEADER_BYTES];
    let payload = buffer[HEADER_BYTES + 1..HEADER_BYTES + length].to_vec();
    buffer.drain(..HEADER_BYTES + length);
    match kind {
        KIND_CONTROL => Ok(Some(Frame::Control(payload))),
        KIND_STDIN => {
            let (offset, bytes) =
                payload.split_first_chunk::<8>().ok_or(FrameError::TooShort(length))?;
            Ok(Some(Frame::Stdin { offset: u64::from_le_bytes(*offset), bytes: bytes.to_vec() }))
        }
        KIND_OUTPUT => {
            let (which, bytes) = payload.split_first().ok_or(FrameError::TooShort(length))?;
            let is_stderr = match which {
                0 => false,
                1 => true,
                other => return Err(FrameError::Stream(*other)),
            };
            Ok(Some(Frame::Output { is_stderr, bytes: bytes.to_vec() }))
        }
        other => Err(FrameError::Kind(other)),
    }
}

#[cfg(test)]
mod tests;
