//! The spool's promises: contiguous, bounded, and honest about what is missing.

use super::*;

fn all(dir: &Path, from: u64) -> Vec<(Chunk, Vec<u8>)> {
    let mut reader = Reader::new(dir, from);
    let mut buffer = vec![0; 10_000];
    let mut found = Vec::new();
    loop {
        match reader.read(&mut buffer).unwrap() {
            Chunk::End => return found,
            chunk @ Chunk::Bytes { count, .. } => found.push((chunk, buffer[..count].to_vec())),
            chunk @ Chunk::Gap { .. } => found.push((chunk, Vec::new())),
        }
    }
}

#[test]
fn what_was_written_is_read_and_a_later_writer_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    writer.write(Stream::Stdout, 1, b"hello ");
    drop(writer);
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(writer.next(), 6);
    writer.write(Stream::Stdout, 2, b"world");
    let found = all(dir.path(), 0);
    assert_eq!(found[0].1, b"hello world");
    assert_eq!(all(dir.path(), 6)[0].1, b"world");
    assert_eq!(Reader::bounds(dir.path()).unwrap(), 0..11);
}

#[test]
fn a_reader_that_fell_behind_is_told_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 8 * 4096;
    let mut writer = Writer::open(dir.path(), bound).unwrap();
    let line: Vec<u8> = (0..100).collect();
    for _ in 0..2000 {
        writer.write(Stream::Stdout, 1, &line);
    }
    let kept = Reader::bounds(dir.path()).unwrap();
    assert_eq!(kept.end, 200_000);
    assert!(kept.end - kept.start <= bound, "{kept:?} is more than {bound}");
    assert!(kept.end - kept.start >= bound / 2, "{kept:?} is too little of {bound}");
    let found = all(dir.path(), 0);
    assert_eq!(found[0].0, Chunk::Gap { from: 0, to: kept.start });
    // What follows is contiguous, and every byte is the one that belongs at its offset.
    let mut at = kept.start;
    for (chunk, bytes) in &found[1..] {
        assert_eq!(*chunk, Chunk::Bytes { offset: at, count: bytes.len() });
        assert!(bytes.iter().zip(at..).all(|(byte, at)| u64::from(*byte) == at % 100));
        at += bytes.len() as u64;
    }
    assert_eq!(at, 200_000);
}

fn stored(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn an_index_takes_its_share_of_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 64 * 1024;
    let mut writer = Writer::open(dir.path(), bound).unwrap();
    // An entry for each byte: as much of an index as there can be.
    for n in 0..100_000 {
        let stream = if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
        writer.write(stream, n, b"x");
        assert!(n % 100 > 0 || stored(dir.path()) <= bound, "{} at {n}", stored(dir.path()));
    }
    let kept = Reader::bounds(dir.path()).unwrap();
    assert_eq!(kept.end, 100_000);
    assert!(kept.end - kept.start > bound / 2 / 17, "{kept:?}");
    let mut reader = Reader::new(dir.path(), kept.end - 2);
    reader.read(&mut [0; 8]).unwrap();
    let spans = reader.spans(kept.end - 2..kept.end).unwrap();
    assert_eq!((spans[0].stream, spans[1].stream), (Stream::Stdout, Stream::Stderr));
}

#[test]
fn what_a_shim_without_that_bound_left_behind_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 8 * 4096;
    for start in [0, 100, 200] {
        fs::write(log_path(dir.path(), start), [b'x'; 100]).unwrap();
        let entry = Entry { offset: start, time_ms: 1, stream: Stream::Stdout };
        fs::write(index_path(dir.path(), start), entry.encode().repeat(4096)).unwrap();
    }
    let mut writer = Writer::open(dir.path(), bound).unwrap();
    assert_eq!(Reader::bounds(dir.path()).unwrap(), 200..300);
    writer.write(Stream::Stdout, 2, b"y");
    assert!(stored(dir.path()) <= bound, "{}", stored(dir.path()));
    // Offsets go on.
    assert_eq!(Reader::bounds(dir.path()).unwrap(), 300..301);
}

#[test]
fn segments_of_next_to_nothing_are_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..1_000 {
        fs::write(log_path(dir.path(), start), b"x").unwrap();
    }
    let writer = Writer::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(writer.next(), 1_000);
    assert_eq!(Reader::bounds(dir.path()).unwrap(), 1_000 - 32..1_000);
}

#[test]
fn a_reader_follows_across_segments_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 8 * 4096).unwrap();
    let mut reader = Reader::new(dir.path(), 0);
    let (mut buffer, mut got) = (vec![0; 700], 0);
    for _ in 0..500 {
        writer.write(Stream::Stdout, 1, &[7; 600]);
        loop {
            match reader.read(&mut buffer).unwrap() {
                Chunk::Bytes { count, .. } => got += count,
                Chunk::End => break,
                gap @ Chunk::Gap { .. } => panic!("{gap:?}"),
            }
        }
    }
    assert_eq!(got, 300_000);
}

#[test]
fn streams_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path(), 1 << 20).unwrap();
    writer.write(Stream::Stdout, 5, b"out");
    writer.write(Stream::Stderr, 6, b"err");
    writer.write(Stream::Stderr, 7, b"err");
    writer.write(Stream::Stdout, 5000, b"out");
    let mut reader = Reader::new(dir.path(), 0);
    reader.read(&mut [0; 64]).unwrap();
    let spans = reader.spans(1..12).unwrap();
    let brief: Vec<_> = spans.iter().map(|s| (s.range.clone(), s.stream, s.time_ms)).collect();
    assert_eq!(
        brief,
        [(1..3, Stream::Stdout, 5), (3..9, Stream::Stderr, 6), (9..12, Stream::Stdout, 5000)]
    );
}

#[test]
fn a_torn_index_entry_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    Writer::open(dir.path(), 1 << 20).unwrap().write(Stream::Stdout, 1, b"x");
    let index = index_path(dir.path(), 0);
    let mut bytes = fs::read(&index).unwrap();
    bytes.extend([1, 2, 3]);
    fs::write(&index, bytes).unwrap();
    Writer::open(dir.path(), 1 << 20).unwrap().write(Stream::Stderr, 9, b"y");
    let mut reader = Reader::new(dir.path(), 0);
    reader.read(&mut [0; 8]).unwrap();
    assert_eq!(reader.spans(0..2).unwrap()[1].stream, Stream::Stderr);
}
