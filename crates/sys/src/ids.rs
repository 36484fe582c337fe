//! Ids of the host's: what its tables say, what anything of them is left in the kernel, and whose they are among
//! daemons.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lock::{self, Lock};
use crate::{SysError, process, read_small};

/// Where daemons lock the ranges that they use, a file each: `FIRST-COUNT`.
const LOCKS: &str = "/run/sodiumd-uids";

/// How long somebody else may be writing to a table.
const TABLE_LOCK_WITHIN: Duration = Duration::from_secs(10);

/// What lies in memory and belongs to somebody, whether a process of theirs runs or not.
const IN_MEMORY: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// Of so many names there, it is found out whose they are: whoever makes millions keeps nobody waiting. No sandbox of
/// this release can make one on the host, but with a daemon that has no ids to give.
const ENTRY_COUNT_MAX: usize = 100_000;

/// Which of these ids a process or something in memory has.
pub fn in_use(ids: &[Range<u32>]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut note = |id: u32| {
        if ids.iter().any(|range| range.contains(&id)) {
            found.insert(id);
        }
    };
    process::all().into_iter().flat_map(ids_of_process).for_each(&mut note);
    for kind in ["shm", "msg", "sem"] {
        let text = read_small(&Path::new("/proc/sysvipc").join(kind)).unwrap_or_default();
        ids_of_table(&text).into_iter().for_each(&mut note);
    }
    let entries =
        IN_MEMORY.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    for entry in entries.take(ENTRY_COUNT_MAX) {
        if let Ok(meta) = fs::symlink_metadata(entry.path()) {
            note(meta.uid());
        }
    }
    found
}

/// Real, effective, saved, and that of its file accesses.
fn ids_of_process(pid: u32) -> Vec<u32> {
    let status = read_small(Path::new(&format!("/proc/{pid}/status"))).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Owners and makers in a table of /proc/sysvipc, whose first line names its columns.
fn ids_of_table(text: &str) -> Vec<u32> {
    let mut lines = text.lines();
    let names = lines.next().unwrap_or_default().split_ascii_whitespace();
    let wanted: Vec<bool> = names.map(|name| matches!(name, "uid" | "cuid")).collect();
    let ids = lines.flat_map(|line| {
        let words = line.split_ascii_whitespace().zip(&wanted);
        words.filter(|(_, wanted)| **wanted).filter_map(|(word, _)| word.parse().ok())
    });
    ids.collect()
}

/// A range that is locked, or who else uses ids of it.
#[derive(Debug)]
pub enum Taken {
    Ours(Lock),
    /// The process, and the range that it has locked.
    Others {
        pid: String,
        range: String,
    },
}

/// Locks a range for as long as the lock is held. Two that overlap are never both locked.
pub fn take(ids: &Range<u64>) -> Result<Taken, SysError> {
    take_in(Path::new(LOCKS), ids)
}

fn take_in(dir: &Path, ids: &Range<u64>) -> Result<Taken, SysError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| SysError::io("mkdir", dir, source))?;
    let name = format!("{}-{}", ids.start, ids.end - ids.start);
    let path = dir.join(&name);
    let others = |path: &Path, range: String| Taken::Others { pid: lock::holder(path), range };
    let Some(ours) = lock::try_take(&path)? else { return Ok(others(&path, name)) };
    // Ours is held before others are looked for, so that of two at once one sees the other.
    for entry in fs::read_dir(dir).map_err(|source| SysError::io("read", dir, source))?.flatten() {
        let other = entry.file_name().to_string_lossy().into_owned();
        let Some(theirs) = range_of(&other).filter(|_| other != name) else { continue };
        let overlaps = theirs.start < ids.end && ids.start < theirs.end;
        if overlaps && lock::is_held(&entry.path())? {
            return Ok(others(&entry.path(), other));
        }
    }
    Ok(Taken::Ours(ours))
}

/// Who holds a range that overlaps with this one: its process, and the range.
pub fn holder(ids: &Range<u64>) -> Option<(String, String)> {
    let entries = fs::read_dir(LOCKS).into_iter().flatten().flatten();
    entries.into_iter().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let theirs = range_of(&name)?;
        let overlaps = theirs.start < ids.end && ids.start < theirs.end;
        let held = overlaps && lock::is_held(&entry.path()).unwrap_or(false);
        held.then(|| (lock::holder(&entry.path()), name))
    })
}

fn range_of(name: &str) -> Option<Range<u64>> {
    let (first, count) = name.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    Some(first..first.checked_add(count.parse().ok()?)?)
}

/// A table of the host's; one that is not there is empty.
pub fn table(path: &str) -> Result<String, SysError> {
    match fs::read(path) {
        // Whoever may change their own full name may write bytes there that are no text.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(SysError::io("read", Path::new(path), source)),
    }
}

/// Adds a line to the end of a table. By one write, so that whoever reads meanwhile sees it whole.
pub fn add_line(path: &str, line: &str) -> Result<(), SysError> {
    let failed = |source| SysError::io("add a line to", Path::new(path), source);
    let before = table(path)?;
    let start = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let mut options = fs::OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o644).open(path).map_err(failed)?;
    let written = file.write_all(format!("{start}{line}\n").as_bytes());
    written.and_then(|()| file.sync_all()).map_err(failed)
}

/// Takes a line out of a table. False: it is not in it. Whoever reads meanwhile sees the table before or after; who
/// writes by the rules of shadow(5)'s programs waits.
pub fn remove_line(path: &str, line: &str) -> Result<bool, SysError> {
    if !table(path)?.lines().any(|found| found.trim() == line) {
        return Ok(false);
    }
    let held = TableLock::take(path)?;
    let failed = |source| SysError::io("take a line out of", Path::new(path), source);
    let before = fs::read(path).map_err(failed)?;
    let lines = before.split_inclusive(|byte| *byte == b'\n');
    let after: Vec<u8> =
        lines.filter(|found| found.trim_ascii() != line.as_bytes()).flatten().copied().collect();
    let half = format!("{path}.sodiumd-new");
    // With the mode and the owner of the table.
    let copied = fs::copy(path, &half).and_then(|_| fs::write(&half, &after));
    let synced = copied.and_then(|()| fs::File::open(&half)?.sync_all());
    let renamed = synced.and_then(|()| fs::rename(&half, path));
    drop(held);
    renamed.map_err(|source| {
        let _ = fs::remove_file(&half);
        failed(source)
    })?;
    Ok(true)
}

/// The lock that useradd and its like take on a table.
struct TableLock(PathBuf);

impl TableLock {
    fn take(path: &str) -> Result<Self, SysError> {
        let lock = PathBuf::from(format!("{path}.lock"));
        let until = Instant::now() + TABLE_LOCK_WITHIN;
        loop {
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock);
            match made.and_then(|mut file| write!(file, "{}\0", std::process::id())) {
                Ok(()) => return Ok(Self(lock)),
                Err(error)
                    if error.kind() == ErrorKind::AlreadyExists && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(source) => return Err(SysError::io("lock", &lock, source)),
            }
        }
    }
}

impl Drop for TableLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owns_what_is_left_in_memory_is_read_from_its_table() {
        let shm = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                   0          3  1600                   512   100   101      0 200003 200004 200005 200006\n";
        assert_eq!(ids_of_table(shm), [200_003, 200_005]);
        assert!(ids_of_table("").is_empty());
        let (own, _) = crate::own_ids();
        let ranges = [own..own + 1, 0..0];
        assert!(in_use(&ranges).contains(&own), "we run ourselves");
    }

    #[test]
    fn a_line_is_added_and_taken_out_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subuid");
        let path = path.to_str().unwrap();
        assert!(!remove_line(path, "sodiumd:1:2").unwrap(), "there is no table");
        fs::write(path, b"J\xf6rg:100000:65536").unwrap();
        add_line(path, "sodiumd:1:2").unwrap();
        assert!(remove_line(path, "sodiumd:1:2").unwrap());
        assert!(!remove_line(path, "sodiumd:1:2").unwrap());
        assert_eq!(fs::read(path).unwrap(), b"J\xf6rg:100000:65536\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn ranges_that_overlap_are_not_locked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let take = |ids: Range<u64>| take_in(dir.path(), &ids).unwrap();
        let Taken::Ours(first) = take(100..200) else { panic!("it is free") };
        let Taken::Ours(beside) = take(200..300) else { panic!("it only touches the other") };
        for ids in [100..200, 150..160, 0..101, 199..400] {
            let Taken::Others { pid, range } = take(ids) else { panic!("it is in use") };
            assert_eq!(pid, std::process::id().to_string());
            assert!(range == "100-100" || range == "200-100", "{range}");
        }
        drop((first, beside));
        assert!(matches!(take(150..160), Taken::Ours(_)));
    }

    #[test]
    fn a_line_is_added_to_whatever_a_table_ends_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subuid").to_string_lossy().into_owned();
        for (before, after) in [("", "b:2:2\n"), ("a:1:1", "a:1:1\nb:2:2\n"), ("a\n", "a\nb:2:2\n")]
        {
            fs::write(&path, before).unwrap();
            add_line(&path, "b:2:2").unwrap();
            assert_eq!(table(&path).unwrap(), after);
        }
        assert_eq!(table("/nowhere/subuid").unwrap(), "");
    }
}
