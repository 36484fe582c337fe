//! The console on disk: what a workload printed, addressed by absolute byte offset.
//!
//! Segments are files named after the offset of their first byte; beside each lies an index of
//! 16-byte entries (offset, then time and stream). The writer appends, begins a new segment when
//! one is full, its index included, and removes the oldest beyond the bound of all files together.
//! Readers hold nothing but an offset: they look at the files, so that any number of them costs the
//! writer nothing. Where bytes are missing, trimmed or never written because the disk was full, the
//! next segment begins later than the last one ended, and a reader is told of the gap.
//!
//! ```text
//!   00000000000000000000.log  ....................|
//!   00000000000000000000.idx  (0, t, out) (17, t, err) ...
//!   00000000000001048576.log                        .......|  <- appended
//! ```

mod read;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use read::{Chunk, Reader, Span};
pub use write::Writer;

/// Which of its outputs the workload wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
    /// sodiumd itself, about the workload.
    System,
}

/// How many segments the bound is divided into: what trimming takes away at once.
const SEGMENT_COUNT: u64 = 8;
/// Entries are this long: offset (u64), then milliseconds since 1970 in 56 bits and stream in 8.
const ENTRY_BYTES: usize = 16;

/// Where a byte range came from and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    time_ms: u64,
    stream: Stream,
}

impl Entry {
    fn encode(self) -> [u8; ENTRY_BYTES] {
        let stream = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
            Stream::System => 3,
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&(self.time_ms << 8 | stream).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let tagged = word(8);
        let stream = match tagged & 0xFF {
            2 => Stream::Stderr,
            3 => Stream::System,
            _ => Stream::Stdout,
        };
        Self { offset: word(0), time_ms: tagged >> 8, stream }
    }
}

/// First offsets of all segments, ascending.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut starts: Vec<u64> = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    starts.sort_unstable();
    Ok(starts)
}

fn log_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("{start:020}.log"))
}

fn index_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("{start:020}.idx"))
}

#[cfg(test)]
mod tests;
