//! Input on its way to the workload: a small buffer, a credit for whoever sends, and no loss.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::protocol::STDIN_BYTES_MAX;
use sodium_sys::poll;

/// What end of transmission is on a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// The buffer and where it drains to.
#[derive(Debug)]
pub(super) struct Stdin {
    /// `None` once it is closed, by us or by the workload.
    target: Option<OwnedFd>,
    is_tty: bool,
    waiting: Vec<u8>,
    /// Bytes accepted since the start.
    next: u64,
    ending: bool,
}

/// Why input was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("stdin is closed")]
    Closed,
    #[error("stdin continues at {next}, not at {offset}")]
    Hole { next: u64, offset: u64 },
    #[error("stdin has room for {credit} bytes, not for {sent}")]
    Full { credit: usize, sent: usize },
}

impl Stdin {
    pub(super) fn new(target: Option<OwnedFd>, is_tty: bool) -> Self {
        Self { target, is_tty, waiting: Vec::new(), next: 0, ending: false }
    }

    /// Goes to another place from now on.
    pub(super) fn connect(&mut self, target: OwnedFd) {
        self.target = Some(target);
        self.drain();
    }

    /// Takes bytes that begin at `offset`. Those accepted before are skipped.
    pub(super) fn accept(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        if !self.is_open() {
            return Err(Refusal::Closed);
        }
        let seen =
            self.next.checked_sub(offset).ok_or(Refusal::Hole { next: self.next, offset })?;
        let fresh = bytes.get(usize::try_from(seen).unwrap_or(usize::MAX)..).unwrap_or_default();
        if fresh.len() > self.credit() {
            return Err(Refusal::Full { credit: self.credit(), sent: fresh.len() });
        }
        self.waiting.extend_from_slice(fresh);
        self.next += fresh.len() as u64;
        self.drain();
        Ok(())
    }

    /// Puts bytes before everything else; they are no part of the workload's input.
    pub(super) fn put_first(&mut self, bytes: &[u8]) {
        self.waiting.splice(0..0, bytes.iter().copied());
        self.drain();
    }

    /// Closes stdin once everything accepted has been written.
    pub(super) fn end(&mut self) {
        if self.is_tty && self.is_open() {
            self.waiting.push(END_OF_TRANSMISSION);
        }
        self.ending = !self.is_tty;
        self.drain();
    }

    /// Writes what the workload takes now. Returns whether credit grew.
    pub(super) fn drain(&mut self) -> bool {
        let before = self.waiting.len();
        while let Some(target) = &self.target
            && !self.waiting.is_empty()
        {
            match poll::write_some(target.as_fd(), &self.waiting) {
                Ok(Some(count)) => drop(self.waiting.drain(..count)),
                Ok(None) => break,
                // The workload closed its end. What it did not read, nobody will.
                Err(_) => self.close(),
            }
        }
        if self.ending && self.waiting.is_empty() {
            self.close();
        }
        self.waiting.len() != before
    }

    pub(super) fn close(&mut self) {
        self.target = None;
        self.waiting = Vec::new();
    }

    /// What to wait for becoming writable.
    pub(super) fn wants_write(&self) -> Option<BorrowedFd<'_>> {
        self.target.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn credit(&self) -> usize {
        STDIN_BYTES_MAX.saturating_sub(self.waiting.len())
    }

    pub(super) fn is_open(&self) -> bool {
        self.target.is_some() && !self.ending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> (OwnedFd, Stdin) {
        let (read, write) = poll::pipe().unwrap();
        poll::set_nonblocking(write.as_fd()).unwrap();
        (read, Stdin::new(Some(write), false))
    }

    #[test]
    fn repeated_bytes_are_taken_once_and_holes_are_refused() {
        let (read, mut stdin) = filled();
        stdin.accept(0, b"abc").unwrap();
        stdin.accept(1, b"bcd").unwrap();
        assert_eq!(stdin.accept(9, b"x"), Err(Refusal::Hole { next: 4, offset: 9 }));
        let mut got = [0; 16];
        let count = poll::read_some(read.as_fd(), &mut got).unwrap().unwrap();
        assert_eq!(&got[..count], b"abcd");
    }

    #[test]
    fn a_workload_that_does_not_read_stops_the_sender_and_loses_nothing() {
        let (read, mut stdin) = filled();
        let chunk = vec![b'x'; 4096];
        let mut sent = 0_u64;
        while stdin.accept(sent, &chunk).is_ok() {
            sent += chunk.len() as u64;
        }
        assert_eq!(stdin.next(), sent);
        assert_eq!(stdin.credit(), 0);
        stdin.end();
        let (mut got, mut buffer) = (0, vec![0; 65536]);
        while let Some(count @ 1..) = poll::read_some(read.as_fd(), &mut buffer).unwrap() {
            got += count as u64;
            stdin.drain();
        }
        assert_eq!(got, sent);
        assert!(!stdin.is_open());
    }
}
