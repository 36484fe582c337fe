//! Appending to a spool. A full disk costs bytes, never the workload's time.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{ENTRY_BYTES, Entry, SEGMENT_COUNT, Stream, index_path, log_path, segments};

/// A new index entry is due when the stream changes, or after this long.
const ENTRY_INTERVAL_MS: u64 = 1_000;
/// Segments kept, however little is in each: a disk that is full now and then leaves many.
const SEGMENT_COUNT_MAX: usize = 32;

/// The one who appends.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// Of all logs and indexes together.
    bytes_max: u64,
    segment_bytes_max: u64,
    /// Those that are written, oldest first.
    older: VecDeque<Kept>,
    /// `None` while the disk refuses.
    segment: Option<Segment>,
    next: u64,
    last: Option<Entry>,
}

#[derive(Debug)]
struct Segment {
    log: File,
    index: File,
    start: u64,
    /// Of both files.
    bytes: u64,
}

/// A segment that is written.
#[derive(Debug, Clone, Copy)]
struct Kept {
    start: u64,
    /// Of both files.
    bytes: u64,
}

impl Writer {
    /// Continues the spool in `dir`, which is made if need be.
    pub fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let segment_bytes_max = (bytes_max / SEGMENT_COUNT).max(4096);
        let mut writer = Self {
            dir: dir.to_owned(),
            bytes_max,
            segment_bytes_max,
            older: VecDeque::new(),
            segment: None,
            next: 0,
            last: None,
        };
        let starts = segments(dir)?;
        if let Some((last, older)) = starts.split_last() {
            writer.older = older.iter().map(|start| Kept::found(dir, *start)).collect();
            let segment = open_segment(dir, *last)?;
            writer.next = last + segment.log.metadata()?.len();
            writer.segment = Some(segment);
            // What was written under another bound, or by a shim whose indexes had none.
            writer.trim(bytes_max);
        }
        Ok(writer)
    }

    /// The offset of the next byte.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Appends. What the disk does not take is counted in the offset all the same, so that readers
    /// see where it would have been.
    pub fn write(&mut self, stream: Stream, time_ms: u64, bytes: &[u8]) {
        let end = self.next + bytes.len() as u64;
        if self.try_write(stream, time_ms, bytes).is_err() {
            // The oldest output is worth less than the newest.
            self.retire();
            self.trim(self.bytes_max / 2);
            let rest = bytes.len() - usize::try_from(end - self.next).unwrap_or(0);
            if self.try_write(stream, time_ms, &bytes[rest..]).is_err() {
                self.retire();
                self.last = None;
            }
        }
        self.next = end;
    }

    /// Makes everything written so far survive a loss of power.
    pub fn sync(&self) {
        if let Some(segment) = &self.segment {
            // A disk that cannot sync loses history at worst; there is nobody to tell here.
            let _ = segment.index.sync_data().and_then(|()| segment.log.sync_data());
        }
    }

    fn try_write(&mut self, stream: Stream, time_ms: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.note(stream, time_ms)?;
            let segment = self.segment.as_mut().expect("room() opened one");
            let count = segment.log.write(now)?;
            segment.bytes += count as u64;
            self.next += count as u64;
            bytes = if count == now.len() { later } else { &bytes[count..] };
        }
        Ok(())
    }

    /// Bytes that fit into the current segment beside an entry for them; begins a new one when none do.
    fn room(&mut self) -> io::Result<usize> {
        let full = |segment: &Segment| segment.left(self.segment_bytes_max) == 0;
        if self.segment.as_ref().is_none_or(full) {
            self.begin()?;
        }
        let left = self.segment.as_ref().map_or(0, |one| one.left(self.segment_bytes_max));
        Ok(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Begins a new segment, and makes room for a whole one. The last one goes only when the new one is
    /// there: its name says which offset comes next.
    fn begin(&mut self) -> io::Result<()> {
        let segment = open_segment(&self.dir, self.next)?;
        self.retire();
        // It may be the very one, if nothing was written to it.
        if self.older.back().is_some_and(|kept| kept.start == segment.start) {
            self.older.pop_back();
        }
        self.segment = Some(segment);
        self.last = None;
        self.trim(self.bytes_max.saturating_sub(self.segment_bytes_max));
        Ok(())
    }

    /// Nothing more is appended to the current segment.
    fn retire(&mut self) {
        let retired = self.segment.take();
        self.older.extend(retired.map(|Segment { start, bytes, .. }| Kept { start, bytes }));
    }

    /// Indexes what comes next, before it is written: bytes without an entry have no stream.
    fn note(&mut self, stream: Stream, time_ms: u64) -> io::Result<()> {
        let known = self.last.is_some_and(|last| {
            last.stream == stream && time_ms.saturating_sub(last.time_ms) < ENTRY_INTERVAL_MS
        });
        if known {
            return Ok(());
        }
        let entry = Entry { offset: self.next, time_ms, stream };
        let segment = self.segment.as_mut().expect("room() opened one");
        segment.index.write_all(&entry.encode())?;
        segment.bytes += ENTRY_BYTES as u64;
        self.last = Some(entry);
        Ok(())
    }

    /// Removes the oldest segments until at most `keep` bytes are left of all, those counted that were
    /// lost.
    fn trim(&mut self, keep: u64) {
        // The newest stays, whatever it holds.
        let newest = usize::from(self.segment.is_none());
        while self.older.len() > newest
            && let Some(first) = self.older.front().copied()
        {
            let fits = self.bytes() <= keep && self.next - first.start <= keep;
            if fits && self.older.len() < SEGMENT_COUNT_MAX {
                break;
            }
            let _ = fs::remove_file(log_path(&self.dir, first.start));
            let _ = fs::remove_file(index_path(&self.dir, first.start));
            self.older.pop_front();
        }
    }

    /// Bytes of all files.
    fn bytes(&self) -> u64 {
        let current = self.segment.as_ref().map_or(0, |segment| segment.bytes);
        self.older.iter().map(|kept| kept.bytes).sum::<u64>() + current
    }
}

impl Segment {
    /// Bytes that fit into it, after an entry.
    fn left(&self, bytes_max: u64) -> u64 {
        bytes_max.saturating_sub(self.bytes + ENTRY_BYTES as u64)
    }
}

impl Kept {
    fn found(dir: &Path, start: u64) -> Self {
        let length = |path: PathBuf| path.metadata().map_or(0, |meta| meta.len());
        Self { start, bytes: length(log_path(dir, start)) + length(index_path(dir, start)) }
    }
}

fn open_segment(dir: &Path, start: u64) -> io::Result<Segment> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(sodium_sys::path::NO_FOLLOW);
    let index = options.open(index_path(dir, start))?;
    let log = options.open(log_path(dir, start))?;
    let (written, noted) = (log.metadata()?.len(), index.metadata()?.len());
    // A torn entry would put all later ones out of step, and those of no bytes are of no use.
    let whole = if written == 0 { 0 } else { noted - noted % ENTRY_BYTES as u64 };
    if whole < noted {
        index.set_len(whole)?;
    }
    Ok(Segment { log, index, start, bytes: written + whole })
}
