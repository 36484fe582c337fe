//! What is asked of a sandbox and leaves no other mark in the store, as events: programs, input, tickets, files.
//!
//! Nobody waits for them: they are written after the fact, all that there are in one transaction. The first of its
//! kind is written at once; what the same caller does again to the same sandbox within a minute is counted, and told
//! in one event. What the store was told to change says by itself who asked: [`Api::write_for`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::api::{Api, Shared};
use sodium_model::{Level, SandboxName};
use sodium_sys::error::chain;

/// For so long after an event, more of the same is only counted.
const COUNTED_FOR: Duration = Duration::from_secs(60);
/// Between two transactions: a disk has better things to do.
const PAUSE: Duration = Duration::from_millis(100);
/// After one that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Told apart at once. So many only wait while the disk takes nothing.
const KEY_COUNT_MAX: usize = 4_096;
/// Of the name of a program.
const PROGRAM_CHARS_MAX: usize = 64;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Act {
    Exec,
    Input,
    TicketIssued,
    TicketUsed,
    /// In the directory of specs.
    FileWritten,
    FileRemoved,
}

impl Act {
    fn reason(self) -> &'static str {
        match self {
            Self::Exec => "ExecStarted",
            Self::Input => "InputSent",
            Self::TicketIssued => "TicketIssued",
            Self::TicketUsed => "TicketUsed",
            Self::FileWritten => "FileWritten",
            Self::FileRemoved => "FileRemoved",
        }
    }
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    sandbox: SandboxName,
    act: Act,
    by: String,
}

#[derive(Debug)]
struct Entry {
    /// Done, and not written yet.
    count: u64,
    /// The last of them, for people.
    last: String,
    /// When it is written, or forgotten if there is nothing to write.
    due: Instant,
}

/// What is to be written.
#[derive(Debug, Clone)]
struct Line {
    key: Key,
    count: u64,
    last: String,
}

impl Line {
    fn message(&self) -> String {
        let (last, by) = (&self.last, &self.key.by);
        match self.count {
            1 => format!("{last} ({by})"),
            count => format!("{count} times, at last: {last} ({by})"),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Audit {
    entries: Mutex<HashMap<Key, Entry>>,
    wake: Notify,
}

impl Audit {
    /// Notes that something was done, in a sentence without its end.
    pub(super) fn note(
        &self,
        sandbox: &SandboxName,
        act: Act,
        caller: &impl fmt::Display,
        last: String,
    ) {
        let key = Key { sandbox: sandbox.clone(), act, by: caller.to_string() };
        self.add(key, last);
    }

    fn add(&self, key: Key, last: String) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&key) {
            entry.count += 1;
            entry.last = last;
            return;
        }
        if entries.len() >= KEY_COUNT_MAX {
            entries.retain(|_, entry| entry.count > 0);
        }
        if entries.len() >= KEY_COUNT_MAX {
            warn!(sandbox = %key.sandbox, what = key.act.reason(), by = key.by, "event lost");
            return;
        }
        entries.insert(key, Entry { count: 1, last, due: Instant::now() });
        self.wake.notify_one();
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock().values().map(|entry| entry.due).min()
    }

    /// What is to be written now, or of `all`.
    fn due(&self, all: bool) -> Vec<Line> {
        let now = Instant::now();
        let mut entries = self.lock();
        entries.retain(|_, entry| entry.count > 0 || entry.due > now);
        let due = entries.iter().filter(|(_, entry)| entry.count > 0 && (all || entry.due <= now));
        due.map(|(key, entry)| {
            let (key, last) = (key.clone(), entry.last.clone());
            Line { key, count: entry.count, last }
        })
        .collect()
    }

    fn settle(&self, lines: &[Line], written: bool) {
        let mut entries = self.lock();
        let after = if written { COUNTED_FOR } else { RETRY_AFTER };
        for line in lines {
            if let Some(entry) = entries.get_mut(&line.key) {
                entry.count -= if written { line.count } else { 0 };
                entry.due = Instant::now() + after;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().expect("nobody panics while counting")
    }
}

/// A program as events name it: whole commands may hold secrets.
pub(super) fn program(command: &[String]) -> String {
    let name = command.first().map_or("", String::as_str);
    format!("{:?}", name.chars().take(PROGRAM_CHARS_MAX).collect::<String>())
}

/// Writes events until the daemon ends, and then what there still is.
pub async fn audit(api: Shared, shutdown: CancellationToken) {
    loop {
        let due = api.audit.next_due();
        // Each arm only waits.
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = api.audit.wake.notified() => (),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => (),
        }
        write(&api, false).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sleep(PAUSE) => (),
        }
    }
    write(&api, true).await;
}

async fn write(api: &Api, all: bool) {
    let due = api.audit.due(all);
    if due.is_empty() {
        return;
    }
    let (lines, now) = (due.clone(), api.now());
    let written = api.store.write(move |core| {
        for line in lines {
            let what = (line.key.act.reason(), line.message());
            core.event(Some(&line.key.sandbox), Level::Normal, what, now)?;
        }
        Ok(())
    });
    let written = written.await;
    if let Err(error) = &written {
        warn!(error = chain(error), count = due.len(), "events not written, and tried again");
    }
    api.audit.settle(&due, written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(by: &str) -> Key {
        let sandbox = SandboxName::try_from("web").unwrap();
        Key { sandbox, act: Act::Exec, by: by.to_owned() }
    }

    fn told(audit: &Audit) -> Vec<String> {
        let lines = audit.due(false);
        audit.settle(&lines, true);
        lines.iter().map(Line::message).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_at_once_and_more_of_the_same_together() {
        let audit = Audit::default();
        audit.add(key("token a"), "\"sh\" was run".to_owned());
        assert_eq!(told(&audit), ["\"sh\" was run (token a)"]);
        for _ in 0..500 {
            audit.add(key("token a"), "\"ls\" was run".to_owned());
        }
        audit.add(key("token b"), "\"id\" was run".to_owned());
        assert_eq!(told(&audit), ["\"id\" was run (token b)"]);
        tokio::time::advance(COUNTED_FOR).await;
        assert_eq!(told(&audit), ["500 times, at last: \"ls\" was run (token a)"]);
        tokio::time::advance(COUNTED_FOR).await;
        assert!(told(&audit).is_empty() && audit.next_due().is_none());
        // What is not written yet is told at the end.
        audit.add(key("token a"), "\"sh\" was run".to_owned());
        told(&audit);
        audit.add(key("token a"), "\"sh\" was run".to_owned());
        assert_eq!((audit.due(false).len(), audit.due(true).len()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_tried_again_whole() {
        let audit = Audit::default();
        audit.add(key("a"), "x".to_owned());
        let lines = audit.due(false);
        audit.add(key("a"), "y".to_owned());
        audit.settle(&lines, false);
        assert!(audit.due(false).is_empty());
        tokio::time::advance(RETRY_AFTER).await;
        assert_eq!(told(&audit), ["2 times, at last: y (a)"]);
    }

    #[tokio::test]
    async fn keys_are_only_so_many() {
        let audit = Audit::default();
        for n in 0..KEY_COUNT_MAX + 10 {
            audit.add(key(&n.to_string()), String::new());
        }
        assert_eq!(audit.due(false).len(), KEY_COUNT_MAX);
        audit.settle(&audit.due(false), true);
        audit.add(key("new"), String::new());
        assert_eq!(audit.lock().len(), 1);
    }

    #[test]
    fn of_a_command_the_program_alone_is_told() {
        let command = ["s\u{1b}h".to_owned(), "--password=x".to_owned()];
        assert_eq!(program(&command), "\"s\\u{1b}h\"");
        assert_eq!(program(&["x".repeat(1_000)]).len(), PROGRAM_CHARS_MAX + 2);
    }
}
