//! What the guest asked of gVisor's kernel and that does not have. runsc says so as it happens, through a
//! pipe: a file would grow with whatever a guest thinks of asking.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::Deserialize;

use sodium_sys::{SysError, poll, seccomp};

/// Different system calls that are kept. A guest that asks for more is looking for something.
const CALL_COUNT_MAX: usize = 16;
/// A line is far shorter.
const LINE_BYTES_MAX: usize = 4096;
/// Tried by every program's C library, which does without.
const HARMLESS: &[&str] = &["rseq"];

#[derive(Debug)]
pub(super) struct Unsupported {
    pipe: OwnedFd,
    text: Vec<u8>,
    /// Names, or where gVisor knows none, numbers.
    calls: BTreeSet<String>,
}

/// Whoever says something without end is not listened to without end.
const READS_AT_ONCE: usize = 4;

#[derive(Debug, Deserialize)]
struct Line {
    log: String,
}

impl Unsupported {
    pub(super) fn listen(path: &Path) -> Result<Self, SysError> {
        let pipe = poll::named_pipe(path)?;
        Ok(Self { pipe, text: Vec::new(), calls: BTreeSet::new() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what has been said by now.
    pub(super) fn read(&mut self) {
        let mut chunk = [0; LINE_BYTES_MAX];
        for _ in 0..READS_AT_ONCE {
            let Ok(Some(count @ 1..)) = poll::read_some(self.pipe.as_fd(), &mut chunk) else {
                return;
            };
            self.text.extend_from_slice(&chunk[..count]);
            while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                self.note(&line);
            }
            if self.text.len() > LINE_BYTES_MAX {
                self.text.clear();
            }
        }
    }

    fn note(&mut self, line: &[u8]) {
        let Ok(Line { log }) = serde_json::from_slice(line) else { return };
        let Some((_, rest)) = log.split_once("Unsupported syscall ") else { return };
        let call = rest.split('(').next().unwrap_or_default();
        let call = call.strip_prefix("sys_").unwrap_or(call);
        let plain = call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if plain && !HARMLESS.contains(&call) && self.calls.len() < CALL_COUNT_MAX {
            self.calls.insert(call.to_owned());
        }
    }

    /// A sentence for whoever wonders why the program failed.
    pub(super) fn sentence(&self) -> Option<String> {
        let list = |calls: Vec<&String>| {
            let words: Vec<String> = calls
                .into_iter()
                .map(|call| match call.parse::<u64>() {
                    Ok(number) => format!("system call {number}"),
                    Err(_) => call.clone(),
                })
                .collect();
            words.join(", ")
        };
        let (nowhere, elsewhere): (Vec<_>, Vec<_>) =
            self.calls.iter().partition(|call| seccomp::denies(call));
        let parts = [
            (!elsewhere.is_empty()).then(|| {
                format!("{}: isolation bubblewrap leaves it to the host", list(elsewhere))
            }),
            (!nowhere.is_empty()).then(|| format!("{}: no isolation allows it", list(nowhere))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty())
            .then(|| format!("it asked for what gVisor does not have ({})", parts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gvisor_lacks_becomes_a_sentence_that_says_what_would_work() {
        let dir = tempfile::tempdir().unwrap();
        let mut unsupported = Unsupported::listen(&dir.path().join("log")).unwrap();
        assert_eq!(unsupported.sentence(), None);
        for line in [
            r#"{"log":"compat.go:120] Unsupported syscall rseq(0x7,0x0). It is likely","level":"info"}"#,
            "nonsense",
            r#"{"log":"Unsupported syscall userfaultfd(0x0). It","level":"info"}"#,
            r#"{"log":"compat.go:120] Unsupported syscall sys_449(0x0). It","level":"info"}"#,
            r#"{"log":"Uncaught signal: \"aborted\" (6)","level":"info"}"#,
        ] {
            unsupported.note(line.as_bytes());
        }
        assert_eq!(
            unsupported.sentence().unwrap(),
            "it asked for what gVisor does not have (system call 449: isolation bubblewrap leaves \
             it to the host; userfaultfd: no isolation allows it)"
        );
    }
}
