//! The console on a disk that has no room for all of it.

use std::path::Path;
use std::process::Command;

use sodium_shim::spool::{Chunk, Reader, Stream, Writer};

const PAGE_BYTES: u64 = 4096;
/// In so many segments that a disk is full before a spool is.
const SPOOL_BYTES_MAX: u64 = 16 * PAGE_BYTES;

/// A file system of so many pages, on which what is written is short where the next page is one too many.
struct Small(tempfile::TempDir);

impl Small {
    fn new(pages: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={}", pages * PAGE_BYTES);
        run("mount", &["-t", "tmpfs", "-o", &options, "none"], dir.path());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy"], self.0.path());
    }
}

fn run(program: &str, args: &[&str], at: &Path) {
    let status = Command::new(program).args(args).arg(at).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

/// Which byte belongs at an offset.
fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

/// From where to where the spool is whole.
fn kept(dir: &Path) -> (u64, u64) {
    let mut reader = Reader::new(dir, 0);
    let (mut buffer, mut start, mut at) = (vec![0; 1 << 20], 0, 0);
    loop {
        match reader.read(&mut buffer).unwrap() {
            Chunk::End => return (start, at),
            Chunk::Gap { from, to } => {
                assert_eq!(from, 0, "nothing is missing between bytes that are there");
                (start, at) = (to, to);
            }
            Chunk::Bytes { offset, count } => {
                assert_eq!(offset, at);
                let mut found = buffer[..count].iter().zip(at..);
                let wrong = found.find(|(byte, at)| **byte != byte_at(*at));
                assert_eq!(wrong, None, "a byte is not where it belongs");
                at += count as u64;
            }
        }
    }
}

#[test]
fn a_full_disk_takes_the_oldest_output_and_doubles_none_of_the_newest() {
    // Some of them end within what is written at once, wherever that is cut.
    for pages in 16..=20 {
        let disk = Small::new(pages);
        let mut writer = Writer::open(disk.0.path(), SPOOL_BYTES_MAX).unwrap();
        for _ in 0..40 {
            let from = writer.next();
            let bytes: Vec<u8> = (from..from + 5_000).map(byte_at).collect();
            writer.write(Stream::Stdout, 1, &bytes);
            let (start, end) = kept(disk.0.path());
            assert_eq!((end, writer.next()), (from + 5_000, from + 5_000), "{pages} pages");
            assert!(start == 0 || end - start >= 2 * PAGE_BYTES, "{start}..{end} is too little");
        }
    }
}
