//! One connected daemon: bytes in, bytes out, and what it still has to be told.
//!
//! News is remembered as flags, not as messages, so a peer that never reads costs a constant amount
//! of memory: when it reads again it gets the present state, once.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::protocol::{Frame, FrameError, control, take_frame};
use sodium_sys::poll;

/// Replies a peer may leave unread before it is dropped.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Set by hello; no other verb is served before it.
    pub epoch: Option<u64>,
    pub subscribed: bool,
    pub news: News,
    gone: bool,
}

/// What changed since the peer was last told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    pub state: bool,
    pub console: bool,
    pub credit: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        // A stream that cannot be made nonblocking is dropped at the first read.
        let gone = stream.set_nonblocking(true).is_err();
        let news = News::default();
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            epoch: None,
            subscribed: false,
            news,
            gone,
        }
    }

    /// Reads what has come; the peer is gone once it said so or misbehaved.
    pub(super) fn receive(&mut self) {
        let mut buffer = [0; 8192];
        match poll::read_some(self.stream.as_fd(), &mut buffer) {
            Ok(Some(0)) | Err(_) => self.gone = true,
            Ok(Some(count)) => self.input.extend_from_slice(&buffer[..count]),
            Ok(None) => (),
        }
    }

    /// The next whole frame.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        match take_frame(&mut self.input) {
            Ok(frame) => frame,
            Err(
                FrameError::TooLong(_)
                | FrameError::TooShort(_)
                | FrameError::Kind(_)
                | FrameError::Stream(_),
            ) => {
                self.gone = true;
                None
            }
        }
    }

    pub(super) fn send(&mut self, message: &impl Serialize) {
        self.send_frame(&control(message));
    }

    pub(super) fn send_frame(&mut self, frame: &[u8]) {
        self.output.extend(frame);
        self.gone |= self.output.len() > UNREAD_BYTES_MAX;
        self.flush();
    }

    /// Whether news can be told now: nothing older is still on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.output.is_empty()
    }

    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() && !self.gone {
            match poll::write_some(self.stream.as_fd(), &self.output) {
                Ok(Some(count)) => drop(self.output.drain(..count)),
                Ok(None) => return,
                Err(_) => self.gone = true,
            }
        }
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
