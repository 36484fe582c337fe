//! How a workload ended, with the kernel's evidence. Never invented: what is not known is `lost`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use sodium_sys::cgroup::Usage;
use sodium_sys::process::Ended;
use sodium_sys::{SysError, path};

/// What the shim knows of an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub iid: String,
    #[serde(flatten)]
    pub cause: Cause,
    pub started_at_ms: Option<u64>,
    pub ended_at_ms: u64,
    /// Why it was asked to end, if it was.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub usage: Usage,
    /// What the kernel had counted before it began: not nothing, if it was started ahead.
    #[serde(default)]
    pub before: Usage,
    /// Where its console began, and ended.
    #[serde(default)]
    pub console: (u64, u64),
    #[serde(default)]
    pub generation: u64,
    /// What may have been the matter, for people.
    #[serde(default)]
    pub hint: Option<String>,
}

/// Why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// The kernel killed it for want of memory.
    Oom {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// It ran longer than allowed.
    Timeout {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// Its program never ran.
    StartFailed {
        stage: String,
        message: String,
    },
}

/// What else is known about an end, apart from how the first process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    pub oom_kills: u64,
    pub timed_out: bool,
    /// It was killed as a whole since one of its processes was.
    pub out_of_memory: bool,
    /// We killed it, so that a SIGKILL proves nothing.
    pub killed_by_us: bool,
}

/// Names the cause. The counter of the kernel tells an out-of-memory kill from any other.
pub fn classify(ended: Ended, evidence: Evidence) -> Cause {
    let (code, signal) = match ended {
        Ended::Exited(code) => (Some(code), None),
        Ended::Signaled(signal) => (None, Some(signal)),
    };
    if evidence.timed_out {
        return Cause::Timeout { code, signal };
    }
    if evidence.out_of_memory {
        return Cause::Oom { code, signal };
    }
    // 137 is what a shell answers when its child was killed.
    let killed = matches!(ended, Ended::Signaled(9) | Ended::Exited(137));
    if killed && evidence.oom_kills > 0 && !evidence.killed_by_us {
        return Cause::Oom { code, signal };
    }
    match ended {
        Ended::Exited(code) => Cause::Exited { code },
        Ended::Signaled(signal) => Cause::Signaled { signal },
    }
}

/// Writes the exit where it survives everything: temporary name, fsync, rename, fsync.
pub fn store(exit: &Exit, at: &Path) -> Result<(), SysError> {
    let json = serde_json::to_vec(exit).expect("an exit has string keys and no maps");
    path::write_durably(at, &json)
}

/// Reads an exit back. `None` when there is none, or none that can be read.
pub fn load(at: &Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(at).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ended: Ended, oom_kills: u64, killed_by_us: bool, want: Cause) {
        let evidence = Evidence { oom_kills, killed_by_us, ..Evidence::default() };
        assert_eq!(classify(ended, evidence), want);
    }

    #[test]
    fn the_kernels_counter_tells_out_of_memory_from_a_kill() {
        let killed = Ended::Signaled(9);
        check(killed, 0, false, Cause::Signaled { signal: 9 });
        check(killed, 1, false, Cause::Oom { code: None, signal: Some(9) });
        check(killed, 1, true, Cause::Signaled { signal: 9 });
        check(Ended::Exited(137), 2, false, Cause::Oom { code: Some(137), signal: None });
        // A child was killed, and the workload carried on to an end of its own.
        check(Ended::Exited(1), 1, false, Cause::Exited { code: 1 });
    }

    #[test]
    fn exits_keep_their_spelling_on_disk() {
        let json = r#"{"iid":"a-1","kind":"exited","code":3,"started_at_ms":1,"ended_at_ms":2}"#;
        let exit: Exit = serde_json::from_str(json).unwrap();
        assert_eq!(exit.cause, Cause::Exited { code: 3 });
        assert_eq!((exit.reason, exit.usage), (None, Usage::default()));
    }
}
