//! When to scan: soon after a hint, and every fifteen seconds whatever was hinted.
//!
//! The directory's own times tell whether a name came, went or was renamed over since the last complete
//! scan; if not, only a file written in place can have escaped, and each round checks so many of them
//! in turn. Ten thousand specs at rest cost as little as a thousand.
//!
//! A hint names files that may have changed; those alone are looked at, so that one edit among ten
//! thousand costs one file. Whatever is odder than a file, an overflow, a renamed directory, a swap
//! of symlinks, makes the next scan a full one. The directory is watched, never a file in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::desired::merge::{ABSENT_FOR, Merge, merge};
use crate::desired::scan::{Scan, Scanner, is_spec};
use crate::live::Live;
use crate::store::files::{self, FileChanges};
use crate::store::{Store, StoreError};
use sodium_model::admission::Rules;
use sodium_model::{SandboxName, Time};
use sodium_sys::beneath::Beneath;
use sodium_sys::error::chain;

/// A hint is acted on once it has been quiet for this long,
const QUIET: Duration = Duration::from_millis(150);
/// or after this long, however busy it is.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// The truth is looked at this often,
const ROUND: Duration = Duration::from_secs(15);
/// and this many files in each, if the directory itself is unchanged.
const CHECKED_AT_ONCE: usize = 1_000;
/// After a look that another one has to follow, nothing is looked at for so many times as long.
const REST_FACTOR: u32 = 4;
/// Hints that wait; of more, only that there were some.
const HINTS_MAX: usize = 4_096;

/// Asks the thread for something.
enum Message {
    /// This file may have changed; none: anything may have.
    Hint(Option<String>),
    /// This file is being written,
    Writing(String),
    /// or has been, and whoever did is done.
    Written(String),
    /// Scan now and answer when its consequences are stored.
    Look(oneshot::Sender<()>),
    /// What was wrong with a text may be right now: read all again.
    Reread,
    /// The same of one.
    RereadFile(String),
    Stop,
}

/// A handle on the thread; the thread ends with [`Watch::stop`].
#[derive(Debug, Clone)]
pub struct Watch {
    messages: Sender<Message>,
}

/// What the thread works with.
pub struct Source {
    pub root: PathBuf,
    pub store: Store,
    pub rules: Arc<Live<Rules>>,
    pub clock: fn() -> u64,
    /// Called with each name whose file said something new.
    pub changed: Box<dyn Fn(&SandboxName) + Send>,
}

impl Watch {
    /// Starts watching. The first full scan follows at once.
    pub fn start(source: Source) -> (Self, thread::JoinHandle<()>) {
        let (messages, inbox) = channel();
        let hints = messages.clone();
        let thread = thread::Builder::new()
            .name("desired".to_owned())
            .spawn(move || {
                let scanner = Scanner::new(&source.root);
                let waiting = Arc::default();
                let hints = HintSender { messages: hints, waiting: Arc::clone(&waiting) };
                let watcher = Hints { root: source.root.clone(), hints, armed: None };
                let known = Known { doubt: true, ..Known::default() };
                Loop { source, scanner, watcher, known }.run(&inbox, &waiting);
            })
            .expect("a thread can be started at start-up");
        (Self { messages }, thread)
    }

    /// Scans now, and returns when everything that followed from it is stored.
    pub async fn look(&self) {
        let (done, answer) = oneshot::channel();
        if self.messages.send(Message::Look(done)).is_ok() {
            // The thread ends only with the daemon.
            let _ = answer.await;
        }
    }

    /// Judges every file anew, by the rules that are in force now.
    pub fn reread(&self) {
        let _ = self.messages.send(Message::Reread);
    }

    /// Reads this file again, whether or not it has changed: what it may declare has.
    pub fn reread_file(&self, name: &str) {
        let _ = self.messages.send(Message::RereadFile(name.to_owned()));
    }

    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }
}

struct Loop {
    source: Source,
    scanner: Scanner,
    watcher: Hints,
    known: Known,
}

/// What one look leaves to know for the next.
#[derive(Default)]
struct Known {
    /// Whether the directory could not be read last time, so that it is said once.
    unreadable: bool,
    /// Whether the last look at everything had to leave some for the next, so that it is said once.
    crowded: bool,
    /// Only a complete scan can tell what is to follow from the last one.
    doubt: bool,
    /// What a look at a few files has left of them.
    left_of_few: BTreeSet<String>,
}

/// What a round of waiting came to.
#[derive(Default)]
struct Round {
    names: BTreeSet<String>,
    /// Of these, to be read whatever can be seen of them.
    doubted: BTreeSet<String>,
    /// Of these, not to be waited with, however new they are.
    written: BTreeSet<String>,
    everything: bool,
    reread: bool,
    askers: Vec<oneshot::Sender<()>>,
    stop: bool,
}

impl Loop {
    fn run(mut self, inbox: &Receiver<Message>, waiting: &AtomicUsize) {
        let [mut due, mut rest_of_few, mut rest_of_all] = [Instant::now(); 3];
        loop {
            let mut round = collect(inbox, (due, rest_of_few), waiting);
            if round.stop {
                return;
            }
            self.watcher.arm();
            if round.reread {
                self.scanner.forget_all();
            }
            for name in &round.doubted {
                self.scanner.forget(name);
            }
            round.names.append(&mut round.doubted);
            round.names.append(&mut self.known.left_of_few);
            let in_turn = Instant::now() >= due;
            if in_turn {
                due = Instant::now() + ROUND;
                round.everything |= self.known.doubt || !self.scanner.same_names();
                round.names.extend(self.scanner.next_few(CHECKED_AT_ONCE));
            }
            let began = Instant::now();
            let is_asked = !round.askers.is_empty() || round.reread;
            if round.everything && !is_asked && began < rest_of_all {
                (round.everything, self.known.doubt) = (false, true);
                due = due.min(rest_of_all);
            }
            self.known.doubt = match round.everything {
                true => self.scan_all(in_turn || round.reread, &round.written),
                // Only a complete one can tell what there was doubt about.
                false => self.scan_some(&round) | self.known.doubt,
            };
            // However much there is to be read, it takes no more than its share of a cpu.
            let rest = Instant::now() + began.elapsed() * REST_FACTOR;
            *(if round.everything { &mut rest_of_all } else { &mut rest_of_few }) = rest;
            if self.known.doubt {
                due = due.min(Instant::now() + ABSENT_FOR.duration() + QUIET);
            }
            due = due.max(rest_of_all).max(rest_of_few);
            for asker in round.askers {
                let _ = asker.send(());
            }
        }
    }

    fn scan_all(&mut self, with_doubted: bool, written: &BTreeSet<String>) -> bool {
        match self.scanner.scan((self.source.clock)(), with_doubted) {
            Ok(mut scan) => {
                scan.settle(written);
                self.known.unreadable = false;
                self.take(&scan, true)
            }
            Err(error) => {
                // Nothing is known, so nothing follows.
                if !std::mem::replace(&mut self.known.unreadable, true) {
                    let path = self.source.root.display().to_string();
                    warn!(path, %error, "spec directory unreadable; keeping the last applied specs");
                }
                false
            }
        }
    }

    /// A file that is not there any more needs the whole picture: was it renamed, or removed?
    fn scan_some(&mut self, round: &Round) -> bool {
        let names = round.names.iter().filter(|name| is_spec(name));
        let names: Vec<String> = names.cloned().collect();
        match self.scanner.scan_some(&names, (self.source.clock)()) {
            Ok(mut scan) if scan.present.len() == names.len() => {
                scan.settle(&round.written);
                self.take(&scan, false)
            }
            Ok(_) | Err(_) => self.scan_all(false, &round.written),
        }
    }

    /// Stores what follows from a scan. Returns whether a complete one is due soon.
    fn take(&mut self, scan: &Scan, complete: bool) -> bool {
        let snapshot = self.source.store.snapshot();
        let now = Time((self.source.clock)());
        let rules = self.source.rules.get();
        let merged = merge(&Merge { scan, complete, snapshot: &snapshot, rules: &rules, now });
        for path in &merged.again {
            self.scanner.forget(path);
        }
        if complete {
            self.leave(&merged.left);
        } else {
            self.known.left_of_few = merged.left.into_iter().collect();
        }
        if merged.changes.is_empty() {
            return merged.look_again;
        }
        for (_, reason, message) in &merged.changes.warnings {
            // Quoted, whatever somebody has called their file.
            info!(reason, what = message, "file of specs");
        }
        for changes in merged.changes.slices(files::DECLARED_AT_ONCE) {
            if let Err(error) = self.store(changes, now) {
                warn!(error = chain(&error), "failed to apply spec files; retrying");
                for path in scan.read.keys() {
                    self.scanner.forget(path);
                }
                return true;
            }
        }
        merged.look_again
    }

    /// Begins with these next time.
    fn leave(&mut self, left: &[String]) {
        if let Some(first) = left.first() {
            self.scanner.begin_at(first.clone());
        }
        let was_crowded = std::mem::replace(&mut self.known.crowded, !left.is_empty());
        if self.known.crowded && !was_crowded {
            info!(files = left.len(), "more specs than are read at once: the rest follows");
        }
    }

    /// In one transaction. Others have theirs in between.
    fn store(&mut self, changes: FileChanges, now: Time) -> Result<(), StoreError> {
        let names: Vec<SandboxName> = changes.names().cloned().collect();
        let store = &self.source.store;
        let not_taken = store.write_blocking(move |core| files::apply(core, changes, now))?;
        for path in &not_taken {
            // Nothing in the file tells when it can be.
            self.scanner.forget(path);
        }
        for name in &names {
            (self.source.changed)(name);
        }
        Ok(())
    }
}

/// Waits for the first hint or the next round, then until it is quiet and the rest after the last look at a few is over.
/// Who asks for a look does not wait for that.
fn collect(
    inbox: &Receiver<Message>,
    (due, rest): (Instant, Instant),
    waiting: &AtomicUsize,
) -> Round {
    let mut round = Round::default();
    let take = |round: &mut Round, message| {
        if let Message::Hint(_) | Message::Writing(_) | Message::Written(_) = &message {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
        round.add(message);
    };
    let wait = due.saturating_duration_since(Instant::now());
    match inbox.recv_timeout(wait) {
        Ok(message) => take(&mut round, message),
        Err(RecvTimeoutError::Timeout) => return round,
        Err(RecvTimeoutError::Disconnected) => round.stop = true,
    }
    let latest = (Instant::now() + QUIET_MAX).max(rest);
    while round.askers.is_empty() && !round.stop && Instant::now() < latest {
        let left = latest.saturating_duration_since(Instant::now());
        let quiet = QUIET.max(rest.saturating_duration_since(Instant::now()));
        match inbox.recv_timeout(quiet.min(left)) {
            Ok(message) => take(&mut round, message),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => round.stop = true,
        }
    }
    round
}

impl Round {
    fn add(&mut self, message: Message) {
        match message {
            // Of more than this, only that there were some.
            Message::Hint(Some(_)) | Message::Writing(_) | Message::Written(_)
                if self.names.len() >= HINTS_MAX =>
            {
                self.everything = true;
            }
            Message::Hint(Some(name)) => drop(self.names.insert(name)),
            Message::Writing(name) => {
                self.written.remove(&name);
                self.names.insert(name);
            }
            Message::Written(name) => {
                self.written.insert(name.clone());
                self.names.insert(name);
            }
            Message::Hint(None) => self.everything = true,
            Message::Look(asker) => {
                self.everything = true;
                self.askers.push(asker);
            }
            Message::Reread => (self.everything, self.reread) = (true, true),
            Message::RereadFile(name) => drop(self.doubted.insert(name)),
            Message::Stop => self.stop = true,
        }
    }
}

/// The kernel's notifications, for as long as they last.
struct Hints {
    root: PathBuf,
    hints: HintSender,
    armed: Option<((u64, u64), RecommendedWatcher)>,
}

impl Hints {
    /// Watches the directory that is there now: one that was replaced is another one.
    fn arm(&mut self) {
        let now = Beneath::open(&self.root).and_then(|dir| dir.meta()).ok();
        let now = now.map(|meta| (meta.device, meta.inode));
        let (Some(now), before) = (now, self.armed.as_ref().map(|(identity, _)| *identity)) else {
            self.armed = None;
            return;
        };
        if before == Some(now) {
            return;
        }
        let hints = self.hints.clone();
        let root = self.root.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // The thread that would read them has ended: so does watching, soon.
            let _ = tell(&hints, &root, event);
        });
        let watched = watcher.and_then(|mut watcher| {
            watcher.watch(&self.root, RecursiveMode::NonRecursive).map(|()| watcher)
        });
        match watched {
            Ok(watcher) => self.armed = Some((now, watcher)),
            Err(error) => {
                self.armed = None;
                let path = self.root.display().to_string();
                warn!(path, %error, "no notifications of changes; scanning every 15 s");
            }
        }
    }
}

/// Sends hints, and no more than may wait: whoever renames files without end fills nobody's memory.
#[derive(Clone)]
struct HintSender {
    messages: Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

impl HintSender {
    fn send(&self, hint: Message) -> Result<(), SendError<Message>> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before < HINTS_MAX {
            return self.messages.send(hint);
        }
        if before == HINTS_MAX {
            // The last of them stands for all that follow.
            return self.messages.send(Message::Hint(None));
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

fn tell(
    hints: &HintSender,
    root: &Path,
    event: notify::Result<notify::Event>,
) -> Result<(), SendError<Message>> {
    let Ok(event) = event else { return hints.send(Message::Hint(None)) };
    // Our own scans open and read.
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    if event.kind.is_access() && event.kind != written {
        return Ok(());
    }
    if event.need_rescan() || event.paths.is_empty() {
        return hints.send(Message::Hint(None));
    }
    let is_begun = matches!(
        event.kind,
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any)
    );
    // What gets its name only now was written under another one.
    let is_done = event.kind == written
        || matches!(
            event.kind,
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
        );
    for path in &event.paths {
        let inside = path.parent() == Some(root);
        let name = path.file_name().and_then(|name| name.to_str()).filter(|_| inside);
        match name {
            Some(name) if is_spec(name) && is_done => {
                hints.send(Message::Written(name.to_owned()))?;
            }
            Some(name) if is_spec(name) && is_begun => {
                hints.send(Message::Writing(name.to_owned()))?;
            }
            Some(name) if is_spec(name) => hints.send(Message::Hint(Some(name.to_owned())))?,
            // What leads symlinks elsewhere, as Kubernetes swaps its volumes.
            Some(name) if name.starts_with("..") => hints.send(Message::Hint(None))?,
            // Temporary files and the like tell nothing, until one is renamed to a spec.
            Some(_) => (),
            None => hints.send(Message::Hint(None))?,
        }
    }
    Ok(())
}
