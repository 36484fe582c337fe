//! Asking a shim, one question at a time, with a deadline. For the drivers, which keep no
//! connections; whoever follows a shim reads the frames itself.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::protocol::{
    Frame, FrameError, Reply, Request, State, UNSUPPORTED_VERSION, agree, control, hello,
    take_frame,
};
use sodium_sys::{clock, socket};

/// A shim answers at once or is in trouble.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Unless it is to make mounts for somebody, which takes its time on a busy host; and whether it has is to be known.
const CLAIMED_WITHIN: Duration = Duration::from_secs(15);

/// How long a place among those that a shim speaks to is waited for, and how often it is asked for.
const PLACE_WITHIN_MS: u64 = 2_000;
const PLACE_AGAIN: Duration = Duration::from_millis(2);
const HUNG_UP: [ErrorKind; 3] =
    [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];

/// An open conversation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// Why a shim did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the shim is gone, or not there yet.
    #[error("connect to shim")]
    Connect(#[source] io::Error),
    /// It did not answer in time, or hung up. Proves nothing about the workload.
    #[error("talk to shim")]
    Talk(#[source] io::Error),
    #[error("talk to shim")]
    Frame(#[source] FrameError),
    /// It lives, and it is of a release that this one shares no version with.
    #[error("shim speaks another version of the protocol: {0}")]
    Version(String),
    #[error("shim refused ({code}): {message}")]
    Refused { code: String, message: String },
}

impl Client {
    /// Connects and introduces the daemon of `epoch`. A shim that speaks to as many as it may hangs up at once, and
    /// nobody speaks for long: it is asked again.
    pub fn connect(socket: &Path, epoch: u64) -> Result<(Self, State), ClientError> {
        let deadline = clock::boot_ms() + PLACE_WITHIN_MS;
        loop {
            match Self::introduce(socket, epoch) {
                Err(ClientError::Talk(error))
                    if HUNG_UP.contains(&error.kind()) && clock::boot_ms() < deadline =>
                {
                    thread::sleep(PLACE_AGAIN);
                }
                done => return done,
            }
        }
    }

    fn introduce(socket: &Path, epoch: u64) -> Result<(Self, State), ClientError> {
        let stream = socket::connect(socket).map_err(ClientError::Connect)?;
        stream
            .set_read_timeout(Some(ANSWER_WITHIN))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_WITHIN)))
            .map_err(ClientError::Talk)?;
        let mut client = Self { stream, buffer: Vec::new() };
        match client.exchange(&hello(epoch, false))? {
            Reply::State(state) if agree(state.version, state.version).is_some() => {
                Ok((client, *state))
            }
            Reply::State(state) => {
                Err(ClientError::Version(format!("it speaks {}", state.version)))
            }
            Reply::Error { code, message } if code == UNSUPPORTED_VERSION => {
                Err(ClientError::Version(message))
            }
            Reply::Error { code, message } => Err(ClientError::Refused { code, message }),
            Reply::Done | Reply::Console { .. } | Reply::Credit { .. } => {
                Err(ClientError::Talk(io::Error::from(io::ErrorKind::InvalidData)))
            }
        }
    }

    /// Asks, and expects to hear that it was done.
    pub fn ask(&mut self, request: &Request) -> Result<(), ClientError> {
        if matches!(request, Request::Claim) {
            self.stream.set_read_timeout(Some(CLAIMED_WITHIN)).map_err(ClientError::Talk)?;
        }
        match self.exchange(request)? {
            Reply::Error { code, message } => Err(ClientError::Refused { code, message }),
            Reply::Done | Reply::State(_) | Reply::Console { .. } | Reply::Credit { .. } => Ok(()),
        }
    }

    fn exchange(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.stream.write_all(&control(request)).map_err(ClientError::Talk)?;
        loop {
            if let Some(frame) = take_frame(&mut self.buffer).map_err(ClientError::Frame)? {
                let Frame::Control(json) = frame else { continue };
                // A reply of a kind this build does not know is news for somebody newer.
                if let Ok(reply) = serde_json::from_slice(&json) {
                    return Ok(reply);
                }
                continue;
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).map_err(ClientError::Talk)? {
                0 => return Err(ClientError::Talk(io::ErrorKind::UnexpectedEof.into())),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }
}
