//! Appending to a spool. A full disk costs bytes, never the workload's time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{ENTRY_BYTES, Entry, SEGMENT_COUNT, Stream, index_path, log_path, segments};

/// A new index entry is due when the stream changes, or after this long.
const ENTRY_INTERVAL_MS: u64 = 1_000;

/// The one who appends.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    bytes_max: u64,
    segment_bytes_max: u64,
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
            segment: None,
            next: 0,
            last: None,
        };
        if let Some(start) = segments(dir)?.last().copied() {
            let segment = open_segment(dir, start)?;
            writer.next = start + segment.log.metadata()?.len();
            writer.segment = Some(segment);
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
            self.segment = None;
            self.trim(self.bytes_max / 2);
            let rest = bytes.len() - usize::try_from(end - self.next).unwrap_or(0);
            if self.try_write(stream, time_ms, &bytes[rest..]).is_err() {
                self.segment = None;
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
            self.next += count as u64;
            bytes = if count == now.len() { later } else { &bytes[count..] };
        }
        Ok(())
    }

    /// Bytes that fit into the current segment; begins a new one when none do.
    fn room(&mut self) -> io::Result<usize> {
        let used = self.segment.as_ref().map(|segment| self.next - segment.start);
        let left =
            used.and_then(|used| self.segment_bytes_max.checked_sub(used)).filter(|left| *left > 0);
        let left = if let Some(left) = left {
            left
        } else {
            self.segment = Some(open_segment(&self.dir, self.next)?);
            self.last = None;
            self.trim(self.bytes_max - self.segment_bytes_max);
            self.segment_bytes_max
        };
        Ok(usize::try_from(left).unwrap_or(usize::MAX))
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
        self.last = Some(entry);
        Ok(())
    }

    /// Removes the oldest segments until at most `keep` bytes are left of them.
    fn trim(&self, keep: u64) {
        if self.next <= keep {
            return;
        }
        let starts = segments(&self.dir).unwrap_or_default();
        let current = self.segment.as_ref().map(|segment| segment.start);
        for start in starts {
            if Some(start) == current || self.next - start <= keep {
                break;
            }
            let _ = fs::remove_file(log_path(&self.dir, start));
            let _ = fs::remove_file(index_path(&self.dir, start));
        }
    }
}

fn open_segment(dir: &Path, start: u64) -> io::Result<Segment> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(crate::sys::path::NO_FOLLOW);
    let index = options.open(index_path(dir, start))?;
    // A torn entry would put all later ones out of step.
    let there = index.metadata()?.len();
    let torn = there % ENTRY_BYTES as u64;
    if torn > 0 {
        index.set_len(there - torn)?;
    }
    let log = options.open(log_path(dir, start))?;
    Ok(Segment { log, index, start })
}
