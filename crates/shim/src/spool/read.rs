//! Reading a spool: a cursor into files that somebody else appends to and trims.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ENTRY_BYTES, Entry, Stream, index_path, log_path, segments};

/// Most index entries looked at for one chunk; beyond it the last stream is assumed.
const ENTRIES_MAX: usize = 65_536;

/// A cursor. It costs the writer nothing, however slow it is.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    next: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    log: File,
    start: u64,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// `count` bytes were put into the buffer; they began at `offset`.
    Bytes { offset: u64, count: usize },
    /// These bytes are gone. The cursor now stands at `to`.
    Gap { from: u64, to: u64 },
    /// There is nothing more now.
    End,
}

/// A stretch of bytes from one stream, written at about one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub range: Range<u64>,
    pub stream: Stream,
    pub time_ms: u64,
}

impl Reader {
    /// A cursor at `offset`. The directory need not exist yet.
    pub fn new(dir: &Path, offset: u64) -> Self {
        Self { dir: dir.to_owned(), next: offset, open: None }
    }

    /// The oldest offset still there and the offset after the newest byte.
    pub fn bounds(dir: &Path) -> io::Result<Range<u64>> {
        let starts = match segments(dir) {
            Ok(starts) => starts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        match (starts.first(), starts.last()) {
            (Some(first), Some(last)) => {
                let len = log_path(dir, *last).metadata().map_or(0, |meta| meta.len());
                Ok(*first..last + len)
            }
            _ => Ok(0..0),
        }
    }

    /// Where the cursor stands.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Reads on into `buffer`.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Chunk> {
        if let Some(open) = &self.open {
            let count = open.log.read_at(buffer, self.next - open.start)?;
            if count > 0 {
                let offset = self.next;
                self.next += count as u64;
                return Ok(Chunk::Bytes { offset, count });
            }
        }
        // At the end of a segment, or not in one yet.
        let starts = match segments(&self.dir) {
            Ok(starts) => starts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Chunk::End),
            Err(error) => return Err(error),
        };
        match self.find(&starts)? {
            Found::Here => self.read_opened(buffer),
            Found::Later(to) => {
                let from = std::mem::replace(&mut self.next, to);
                self.open = None;
                Ok(Chunk::Gap { from, to })
            }
            Found::Nothing => Ok(Chunk::End),
        }
    }

    fn read_opened(&mut self, buffer: &mut [u8]) -> io::Result<Chunk> {
        let Some(open) = &self.open else { return Ok(Chunk::End) };
        let offset = self.next;
        let count = open.log.read_at(buffer, offset - open.start)?;
        self.next += count as u64;
        Ok(if count == 0 { Chunk::End } else { Chunk::Bytes { offset, count } })
    }

    /// Opens the segment that holds the cursor.
    fn find(&mut self, starts: &[u64]) -> io::Result<Found> {
        let at = starts.partition_point(|start| *start <= self.next);
        let later = starts.get(at).copied();
        if let Some(start) = at.checked_sub(1).map(|index| starts[index]) {
            if self.open.as_ref().is_none_or(|open| open.start != start) {
                match File::open(log_path(&self.dir, start)) {
                    Ok(log) => self.open = Some(Open { log, start }),
                    // Trimmed between the listing and the opening.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok(later.map_or(Found::Nothing, Found::Later));
                    }
                    Err(error) => return Err(error),
                }
            }
            let open = self.open.as_ref().expect("opened above");
            // The length is read after the listing: a later segment in the listing means that
            // this one has its final length.
            let end = start + open.log.metadata()?.len();
            if self.next < end {
                return Ok(Found::Here);
            }
        }
        Ok(later.map_or(Found::Nothing, Found::Later))
    }

    /// Tells which stream each part of `range` came from, and when.
    pub fn spans(&self, range: Range<u64>) -> io::Result<Vec<Span>> {
        let Some(open) = &self.open else { return Ok(Vec::new()) };
        let entries = entries(&index_path(&self.dir, open.start), range.start)?;
        let mut spans: Vec<Span> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let end = entries.get(index + 1).map_or(range.end, |next| next.offset.min(range.end));
            let start = entry.offset.max(range.start);
            if start < end {
                spans.push(Span {
                    range: start..end,
                    stream: entry.stream,
                    time_ms: entry.time_ms,
                });
            }
        }
        if spans.is_empty() {
            spans.push(Span { range, stream: Stream::Stdout, time_ms: 0 });
        }
        Ok(spans)
    }
}

enum Found {
    Here,
    Later(u64),
    Nothing,
}

/// Entries from the last one at or before `from` on. Found by bisection: an index may be long.
fn entries(path: &Path, from: u64) -> io::Result<Vec<Entry>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let width = ENTRY_BYTES as u64;
    let count = file.metadata()?.len() / width;
    let mut bytes = [0; ENTRY_BYTES];
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = u64::midpoint(low, high);
        file.read_exact_at(&mut bytes, middle * width)?;
        if Entry::decode(&bytes).offset <= from { low = middle + 1 } else { high = middle }
    }
    let first = low.saturating_sub(1);
    let wanted = usize::try_from(count - first).unwrap_or(usize::MAX).min(ENTRIES_MAX);
    let mut all = vec![0; wanted * ENTRY_BYTES];
    let read = file.read_at(&mut all, first * width)?;
    let (whole, _) = all[..read].as_chunks::<ENTRY_BYTES>();
    Ok(whole.iter().map(Entry::decode).collect())
}
