//! Looking at the directory: which files are there, and what do those say that changed?
//!
//! A file whose device, inode, size and times are as they were, and not from the last moments, is
//! not read again. Whatever cannot be read is a fault of that file, never of the scan; a directory
//! that cannot be read is a fault of the scan, and then nothing is concluded from it.
//!
//! Symlinks are followed as long as they stay beneath the directory, which is how Kubernetes lays out its
//! volumes. Only regular files are opened: see [`Beneath`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use sodium_sys::beneath::{Beneath, Links, Meta, ReadError};

/// Largest file read: as much text as a document may hold, and what any other would cost in memory and
/// in time is not spent on it.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// So much is read at once; what is beyond waits for the next scan, with its last good text in force. A directory of
/// links to one file costs nobody the memory of as many files.
const SCAN_BYTES_MAX: usize = 16 << 20;
/// So long a look may take to read: what is beyond waits in the same way. Whoever makes files that are dear to read or to
/// understand takes no more of anybody's time than this.
const LOOK_TIME: Duration = Duration::from_secs(5);
/// So many times as long, to find out what has changed: that is a question for each name, and nothing is known without;
const FIND_FACTOR: u32 = 2;
/// and then so many, to judge what was read.
const JUDGE_FACTOR: u32 = 4;
/// Most files of a directory. Of one that has more, nothing is known.
pub const FILE_COUNT_MAX: usize = 100_000;
/// Times this close to now may hide a second write within the same tick.
const RACY_MS: u64 = 2_000;

/// What is remembered from one scan to the next.
#[derive(Debug, Default)]
pub struct Scanner {
    root: PathBuf,
    seen: BTreeMap<String, Stat>,
    /// The directory itself, as it was before the last complete scan.
    root_seen: Option<Stat>,
    /// Up to where [`Scanner::next_few`] has come.
    checked: String,
    /// Where the next look at everything begins to read, round and round: of more than is read at once, each has its
    /// turn.
    from: String,
    /// The same of looks at a few.
    from_of_few: String,
    look_time: Duration,
}

/// One look at the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Device and inode of the directory.
    pub root: (u64, u64),
    /// Every file that is there, by its name.
    pub present: Vec<String>,
    /// Those that were read, with what they say. Whether it is new is for the digest to tell.
    pub read: BTreeMap<String, Text>,
    pub read_bytes: usize,
    /// With which name it began to read.
    pub from: String,
    /// Those that are left for the next scan: nothing is known of what they say now.
    pub left: Vec<String>,
    /// Those that it was not the time for: perhaps what they say is not what is known of them.
    pub unread: Vec<String>,
    /// When it began, and how long it may take.
    pub time: Option<(Instant, Duration)>,
}

/// What kind of look it is.
#[derive(Debug, Clone, Copy)]
struct Turn {
    now_ms: u64,
    with_doubted: bool,
}

impl Scan {
    /// Whether it has taken so many times as long as it may.
    fn is_over(&self, times: u32) -> bool {
        self.time.is_some_and(|(began, time)| began.elapsed() >= time * times)
    }

    /// Whoever wrote these is done: what was read of them is whole, however new it is.
    pub fn settle(&mut self, written: &BTreeSet<String>) {
        for name in written {
            if let Some(Text::Bytes { fresh, .. }) = self.read.get_mut(name) {
                *fresh = false;
            }
        }
    }

    /// Until when what was read is judged; `None`: to the end.
    pub fn judged_until(&self) -> Option<Instant> {
        self.time.map(|(_, time)| Instant::now() + time * JUDGE_FACTOR)
    }
}

/// What reading a file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    Bytes {
        bytes: Vec<u8>,
        digest: String,
        fresh: bool,
    },
    /// It is there and cannot be used; the reason is for its owner.
    Unusable {
        reason: String,
    },
}

/// What tells that a file was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
    settled: bool,
    /// Nothing that can be seen of the file tells whether it is to be read again.
    doubted: bool,
}

impl Scanner {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), look_time: LOOK_TIME, ..Self::default() }
    }

    /// Looks at everything, and reads what has changed; at its time, what is in doubt as well. An error means that
    /// nothing is known.
    pub fn scan(&mut self, now_ms: u64, with_doubted: bool) -> io::Result<Scan> {
        self.root_seen = None;
        let dir = open(&self.root)?;
        let meta = dir.meta().map_err(|error| error.source)?;
        let mut scan = self.begin(&meta, self.from.clone());
        // A directory that breaks off half way must not look as if the rest were gone.
        let names = dir.names(FILE_COUNT_MAX).map_err(|error| error.source)?;
        let specs = names.into_iter().filter_map(|name| name.into_string().ok());
        let mut specs: Vec<String> = specs.filter(|name| is_spec(name)).collect();
        specs.sort_unstable();
        self.look_at(&dir, &specs, Turn { now_ms, with_doubted }, &mut scan);
        self.seen.retain(|name, _| scan.present.binary_search(name).is_ok());
        // A look out of turn uses up nobody's turn.
        if with_doubted || !scan.left.is_empty() {
            self.begin_at(scan.left.first().cloned().unwrap_or_default());
        }
        self.root_seen =
            Some(Stat::of(&meta, now_ms)).filter(|stat| stat.settled && scan.left.is_empty());
        Ok(scan)
    }

    fn begin(&self, root: &Meta, from: String) -> Scan {
        let time = Some((Instant::now(), self.look_time));
        Scan { root: (root.device, root.inode), from, time, ..Scan::default() }
    }

    /// In turn; `names` are sorted.
    fn look_at(&mut self, dir: &Beneath, names: &[String], turn: Turn, scan: &mut Scan) {
        let from = names.partition_point(|name| *name < scan.from);
        for name in names[from..].iter().chain(&names[..from]) {
            if scan.is_over(FIND_FACTOR) {
                scan.present.push(name.clone());
                scan.left.push(name.clone());
            } else {
                self.look(dir, name, turn, scan);
            }
        }
        scan.present.sort_unstable();
    }

    /// Has the next look at everything begin to read with this name.
    pub fn begin_at(&mut self, name: String) {
        self.from = name;
    }

    /// Whether every name is still what the last complete scan found behind it, but for files that were
    /// written in place: making, removing and renaming touch the directory.
    pub fn same_names(&self) -> bool {
        let Some(then) = self.root_seen else { return false };
        let now = Beneath::open(&self.root).and_then(|dir| dir.meta());
        now.is_ok_and(|meta| Stat { settled: true, ..Stat::of(&meta, 0) } == then)
    }

    /// A few names whose times are not trusted, and the next few of all, round and round.
    pub fn next_few(&mut self, count: usize) -> Vec<String> {
        let after = (Excluded(self.checked.as_str()), Unbounded);
        let next: Vec<&String> =
            self.seen.range::<str, _>(after).take(count).map(|(name, _)| name).collect();
        // A short one was the last of this round.
        let last = next.get(count - 1).map(|name| (*name).clone()).unwrap_or_default();
        let is_doubtful = |stat: &Stat| !stat.settled || stat.doubted;
        let doubtful = self.seen.iter().filter(|(_, stat)| is_doubtful(stat)).map(|(name, _)| name);
        let names: BTreeSet<&String> = next.into_iter().chain(doubtful.take(count)).collect();
        let names = names.into_iter().cloned().collect();
        self.checked = last;
        names
    }

    /// Looks at the named files only, which are sorted, and says nothing of the others.
    pub fn scan_some(&mut self, names: &[String], now_ms: u64) -> io::Result<Scan> {
        let dir = open(&self.root)?;
        let meta = dir.meta().map_err(|error| error.source)?;
        let mut scan = self.begin(&meta, self.from_of_few.clone());
        self.look_at(&dir, names, Turn { now_ms, with_doubted: true }, &mut scan);
        self.from_of_few = scan.left.first().cloned().unwrap_or_default();
        Ok(scan)
    }

    /// Distrusts all of them.
    pub fn forget_all(&mut self) {
        for stat in self.seen.values_mut() {
            stat.doubted = true;
        }
    }

    /// Distrusts a file's times, so that the next look reads it whatever they say.
    pub fn forget(&mut self, name: &str) {
        if let Some(stat) = self.seen.get_mut(name) {
            stat.doubted = true;
        }
    }

    fn look(&mut self, dir: &Beneath, name: &str, turn: Turn, scan: &mut Scan) {
        let stat = match dir.stat(OsStr::new(name), Links::Within) {
            Ok(Some(meta)) => Stat::of(&meta, turn.now_ms),
            // Gone between the listing and now: then it is gone.
            Ok(None) => return,
            Err(error) => {
                scan.present.push(name.to_owned());
                scan.read.insert(name.to_owned(), Text::Unusable { reason: reason(&error) });
                return;
            }
        };
        scan.present.push(name.to_owned());
        if let Some(seen) = self.seen.get(name).filter(|seen| stat.settled && seen.is_of(&stat))
            && !(seen.doubted && turn.with_doubted)
        {
            scan.unread.extend(seen.doubted.then(|| name.to_owned()));
            return;
        }
        if scan.read_bytes > SCAN_BYTES_MAX || scan.is_over(1) {
            scan.left.push(name.to_owned());
            return;
        }
        let text = match dir.read(OsStr::new(name), Links::Within, FILE_BYTES_MAX) {
            Ok(bytes) if bytes.len() as u64 != stat.size => {
                Text::Unusable { reason: "is being written".to_owned() }
            }
            Ok(bytes) => {
                let digest =
                    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                scan.read_bytes += bytes.len();
                Text::Bytes { bytes, digest, fresh: !stat.settled }
            }
            Err(error) => Text::Unusable { reason: reason(&error) },
        };
        self.seen.insert(name.to_owned(), stat);
        scan.read.insert(name.to_owned(), text);
    }
}

fn open(root: &Path) -> io::Result<Beneath> {
    Beneath::open(root).map_err(|error| error.source)
}

/// For the owner of the file.
fn reason(error: &ReadError) -> String {
    match error {
        ReadError::Outside => "is a symlink out of the directory of specs".to_owned(),
        ReadError::Link | ReadError::NotAFile | ReadError::TooLarge { .. } | ReadError::Sys(_) => {
            error.to_string()
        }
    }
}

impl Stat {
    fn of(meta: &Meta, now_ms: u64) -> Self {
        Self {
            device: meta.device,
            inode: meta.inode,
            size: meta.bytes,
            modified_ns: meta.modified_ns,
            changed_ns: meta.changed_ns,
            settled: meta.changed_ns / 1_000_000 + i128::from(RACY_MS) < i128::from(now_ms),
            doubted: false,
        }
    }

    /// Whether it is the file that is now like this.
    fn is_of(&self, now: &Self) -> bool {
        *now == Self { doubted: false, ..*self }
    }
}

/// Whether a file of this name is a spec, and not what editors and tools leave beside one.
pub fn is_spec(name: &str) -> bool {
    let hidden = name.starts_with(['.', '#', '~']) || name.ends_with('~');
    // Whatever shows a name shows it in a line of its own.
    let hidden = hidden || name.contains(['\n', '\r']);
    let named = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
    !hidden && named
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LATER: u64 = 10_u64.pow(15);

    #[test]
    fn names_that_come_go_or_change_show_in_the_directory_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), "x").unwrap();
        let mut scanner = Scanner::new(dir.path());
        assert!(!scanner.same_names(), "nothing was scanned yet");
        scanner.scan(LATER, true).unwrap();
        assert!(scanner.same_names());
        let changes: [&dyn Fn(); 3] = [
            &|| fs::write(path("b.yaml"), "x").unwrap(),
            &|| fs::rename(path("b.yaml"), path("a.yaml")).unwrap(),
            &|| fs::remove_file(path("a.yaml")).unwrap(),
        ];
        for change in changes {
            change();
            assert!(!scanner.same_names());
            scanner.scan(LATER, true).unwrap();
            assert!(scanner.same_names());
        }
        // Just changed: another change within the same tick would not show.
        scanner.scan(0, true).unwrap();
        assert!(!scanner.same_names());
    }

    #[test]
    fn a_few_at_a_time_are_all_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yaml", "c.yaml", "d.yaml"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut scanner = Scanner::new(dir.path());
        scanner.scan(LATER, true).unwrap();
        assert_eq!(scanner.next_few(3), ["a.yaml", "b.yaml", "c.yaml"]);
        assert_eq!(scanner.next_few(3), ["d.yaml"]);
        assert_eq!(scanner.next_few(4), ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]);
        assert_eq!(scanner.next_few(4), [""; 0]);
        assert_eq!(scanner.next_few(1), ["a.yaml"]);
        scanner.forget("d.yaml");
        assert_eq!(scanner.next_few(1), ["b.yaml", "d.yaml"]);
        assert_eq!(
            read_names(&scanner.scan_some(&["d.yaml".to_owned()], LATER).unwrap()),
            ["d.yaml"]
        );
    }

    fn read_names(scan: &Scan) -> Vec<&str> {
        scan.read.keys().map(String::as_str).collect()
    }

    #[test]
    fn only_specs_are_read_and_only_when_they_changed() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["a.yaml", ".a.yaml.swp", "a\nb.yaml", "b.yml", "#c.yaml#", "d.yaml~", "e.txt", "4913"]
        {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut scanner = Scanner::new(dir.path());
        assert_eq!(read_names(&scanner.scan(LATER, true).unwrap()), ["a.yaml", "b.yml"]);
        assert_eq!(read_names(&scanner.scan(LATER, true).unwrap()), [""; 0]);
        fs::write(dir.path().join("b.yml"), "yy").unwrap();
        let scan = scanner.scan(LATER, true).unwrap();
        assert_eq!((read_names(&scan), scan.present.len()), (vec!["b.yml"], 2));
        // A file touched just now is read again: its times may not show the next write.
        let mut scanner = Scanner::new(dir.path());
        assert_eq!(scanner.scan(0, true).unwrap().read.len(), 2);
        assert_eq!(scanner.scan(0, true).unwrap().read.len(), 2);
    }

    #[test]
    fn what_cannot_be_used_is_a_fault_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir.yaml")).unwrap();
        fs::write(at("big.yaml"), vec![b'#'; 5 << 20]).unwrap();
        std::os::unix::fs::symlink(outside.path(), at("out.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling.yaml")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero.yaml")).unwrap();
        std::os::unix::fs::symlink("/proc/self/environ", at("proc.yaml")).unwrap();
        std::os::unix::net::UnixListener::bind(at("socket.yaml")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(at("pipe.yaml")).status();
        assert!(pipe.unwrap().success());
        fs::create_dir(at("..2026")).unwrap();
        fs::write(at("..2026/in.yaml"), "a").unwrap();
        std::os::unix::fs::symlink("..2026", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/in.yaml", at("in.yaml")).unwrap();
        let scan = Scanner::new(dir.path()).scan(LATER, true).unwrap();
        let reason = |name: &str| match &scan.read[name] {
            Text::Unusable { reason } => reason.clone(),
            Text::Bytes { .. } => "read".to_owned(),
        };
        assert_eq!(reason("dir.yaml"), "is not a file");
        assert_eq!(reason("big.yaml"), "is 5242880 bytes, the limit is 1048576");
        assert_eq!(reason("out.yaml"), "is a symlink out of the directory of specs");
        assert_eq!(reason("zero.yaml"), "is a symlink out of the directory of specs");
        assert_eq!(reason("proc.yaml"), "is a symlink out of the directory of specs");
        assert_eq!(
            (reason("pipe.yaml"), reason("socket.yaml")),
            (reason("dir.yaml"), reason("dir.yaml"))
        );
        assert_eq!(reason("in.yaml"), "read");
        assert!(reason("dangling.yaml").contains("No such file"));
        assert!(Scanner::new(&at("nowhere")).scan(LATER, true).is_err());
    }

    #[test]
    fn a_directory_of_links_to_one_file_costs_no_more_than_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let one = "x".repeat(usize::try_from(FILE_BYTES_MAX).unwrap());
        std::fs::write(dir.path().join("one.yaml"), one).unwrap();
        for index in 0..200 {
            let link = dir.path().join(format!("l{index}.yaml"));
            std::os::unix::fs::symlink("one.yaml", link).unwrap();
        }
        let mut scanner = Scanner::new(dir.path());
        // Long after they were written, so that what was read is not read again.
        let later = 4_000_000_000_000;
        let (mut read, mut rounds) = (0, 0);
        loop {
            let scan = scanner.scan(later, true).unwrap();
            assert_eq!(scan.present.len(), 201, "what is not read is not gone");
            assert!(scan.read_bytes <= SCAN_BYTES_MAX + one_mib());
            read += scan.read.len();
            rounds += 1;
            if scan.left.is_empty() {
                break;
            }
        }
        // Each look reads the one that passes the bound.
        assert_eq!((read, rounds), (201, 12));
    }

    #[test]
    fn of_many_that_are_in_doubt_each_has_its_turn_and_none_is_in_the_way_of_a_change() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.yaml"), vec![b'x'; one_mib()]).unwrap();
        for index in 0..40 {
            let link = dir.path().join(format!("c{index:02}.yaml"));
            std::os::unix::fs::symlink("b.yaml", link).unwrap();
        }
        let mut scanner = Scanner::new(dir.path());
        let later = 4_000_000_000_000;
        while !scanner.scan(later, true).unwrap().left.is_empty() {}
        scanner.forget_all();
        let mut read = BTreeMap::new();
        for _ in 0..6 {
            let scan = scanner.scan(later, true).unwrap();
            for name in scan.read.into_keys() {
                *read.entry(name.clone()).or_insert(0) += 1;
                // As what is in conflict is.
                scanner.forget(&name);
            }
        }
        assert_eq!(read.len(), 41);
        assert!(read.values().all(|times| (2..=3).contains(times)), "{read:?}");
        // Out of turn only what has changed is read.
        std::fs::write(dir.path().join("a.yaml"), "x").unwrap();
        assert_eq!(read_names(&scanner.scan(later, false).unwrap()), ["a.yaml"]);
    }

    #[test]
    fn looks_at_a_few_take_no_turn_from_those_at_everything() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a00.yaml"), vec![b'x'; one_mib()]).unwrap();
        for index in 1..60 {
            let link = dir.path().join(format!("a{index:02}.yaml"));
            std::fs::hard_link(dir.path().join("a00.yaml"), link).unwrap();
        }
        std::fs::write(dir.path().join("z.yaml"), "x").unwrap();
        let mut scanner = Scanner::new(dir.path());
        let few: Vec<String> = (0..20).map(|index| format!("a{index:02}.yaml")).collect();
        let (mut read, mut read_of_few) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..4 {
            // All were changed just now.
            read_of_few.extend(scanner.scan_some(&few, 0).unwrap().read.into_keys());
            read.extend(scanner.scan(0, true).unwrap().read.into_keys());
        }
        assert_eq!((read.len(), read_of_few.len()), (61, 20));
    }

    #[test]
    fn a_look_ends_in_time_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yaml", "c.yaml"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut scanner = Scanner { look_time: Duration::ZERO, ..Scanner::new(dir.path()) };
        let scan = scanner.scan(LATER, true).unwrap();
        assert_eq!((scan.left.len(), scan.present.len(), scan.read.len()), (3, 3, 0));
        assert!(!scanner.same_names(), "it was not seen whole");
        scanner.look_time = LOOK_TIME;
        assert_eq!(scanner.scan(LATER, true).unwrap().read.len(), 3);
    }

    #[test]
    fn what_is_in_doubt_and_not_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "x").unwrap();
        let mut scanner = Scanner::new(dir.path());
        scanner.scan(LATER, true).unwrap();
        scanner.forget("a.yaml");
        assert_eq!(scanner.scan(LATER, false).unwrap().unread, ["a.yaml"]);
        let scan = scanner.scan(LATER, true).unwrap();
        assert_eq!((scan.unread.len(), scan.read.len()), (0, 1));
    }

    fn one_mib() -> usize {
        1 << 20
    }
}
