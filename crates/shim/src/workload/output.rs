//! What a workload writes: read, paced, and kept.

use std::os::fd::AsFd;

use super::Workload;
use crate::spool::Stream;
use sodium_sys::{clock, poll};

/// Read at once from an output: what a pipe holds.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// What the pipe of a workload that fills it is grown to. Fewer, larger steps: a busy console gains a
/// third.
const PIPE_BYTES_BUSY: i32 = 512 * 1024;
/// Reads of a full output before others get their turn, and before readers are told.
const READS_AT_ONCE: usize = 4;
/// Kept of standard error, to say why bubblewrap failed.
const STDERR_TAIL_BYTES: usize = 512;
/// Said at once by us.
const ANNOUNCED_BYTES_MAX: usize = 1024;

impl Workload {
    /// Reads one output, several times while it is full. Returns whether there was anything.
    pub(crate) fn read_output(&mut self, stream: Stream) -> bool {
        let mut any = false;
        for _ in 0..READS_AT_ONCE {
            if any && self.is_paced(clock::boot_ms()) {
                return true;
            }
            match self.read_once(stream) {
                0 => return any,
                OUTPUT_BYTES_MAX => {
                    any = true;
                    self.grow(stream);
                }
                _ => return true,
            }
        }
        any
    }

    fn grow(&mut self, stream: Stream) {
        let source = if stream == Stream::Stderr { &self.stderr } else { &self.stdout };
        let grown = &mut self.grown[usize::from(stream == Stream::Stderr)];
        if let Some(fd) = source.as_ref().filter(|_| !*grown) {
            *grown = true;
            poll::grow_pipe(fd.as_fd(), PIPE_BYTES_BUSY);
        }
    }

    /// Bytes read; 0 when there are none now, or no more.
    fn read_once(&mut self, stream: Stream) -> usize {
        let source = if stream == Stream::Stderr { &self.stderr } else { &self.stdout };
        let Some(fd) = source else { return 0 };
        let most = self.pace.map_or(OUTPUT_BYTES_MAX, |pace| pace.chunk(OUTPUT_BYTES_MAX));
        let count = match poll::read_some(fd.as_fd(), &mut self.buffer[..most]) {
            Ok(Some(count @ 1..)) => count,
            Ok(None) => return 0,
            Ok(Some(_)) | Err(_) => {
                self.close_output(stream);
                return 0;
            }
        };
        if stream == Stream::Stderr && self.heard_secret(count) {
            return count;
        }
        if let Some(pace) = &mut self.pace {
            pace.took(count, clock::boot_ms());
        }
        if let Some(spool) = &mut self.spool {
            spool.write(stream, clock::wall_ms(), &self.buffer[..count]);
        }
        if stream == Stream::Stdout && self.wrapper.probe_boot_ms.is_some() {
            // bubblewrap itself never writes here: whoever did is the workload.
            self.wrapper.probe_boot_ms = Some(clock::boot_ms());
        }
        if stream == Stream::Stderr && self.main.is_none() {
            self.stderr_tail.extend_from_slice(&self.buffer[..count]);
            let excess = self.stderr_tail.len().saturating_sub(STDERR_TAIL_BYTES);
            self.stderr_tail.drain(..excess);
        }
        count
    }

    /// Says something of our own on the console: one line, whatever of a tenant's words it quotes.
    pub(crate) fn announce(&mut self, message: &str) {
        let mut line = "[sodiumd] ".to_owned();
        for found in message.chars() {
            if line.len() > ANNOUNCED_BYTES_MAX {
                line.push('…');
                break;
            }
            if found.is_control() { line.extend(found.escape_default()) } else { line.push(found) }
        }
        line.push('\n');
        if let Some(spool) = &mut self.spool {
            spool.write(Stream::System, clock::wall_ms(), line.as_bytes());
        }
    }

    /// Whether output waits, since enough of it was taken for now.
    pub(crate) fn is_paced(&self, now: u64) -> bool {
        self.pace.is_some_and(|pace| pace.waits_until(now).is_some())
    }

    fn close_output(&mut self, stream: Stream) {
        if stream == Stream::Stderr { self.stderr = None } else { self.stdout = None }
    }
}
