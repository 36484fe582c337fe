//! Why a workload ended, from everything that was seen of it.

use std::os::fd::AsFd;

use super::Workload;
use crate::exit::{self, Cause, Evidence, Exit};
use crate::launch::Confinement;
use crate::runtime;
use sodium_sys::clock;
use sodium_sys::process::{self, Ended};

impl Workload {
    pub(super) fn conclude(&mut self, ended: Ended) {
        let usage = self.launch.group.usage();
        let evidence = Evidence {
            oom_kills: usage.oom_kills.saturating_sub(self.before.oom_kills),
            timed_out: self.ending.timed_out,
            out_of_memory: self.memory.is_over(),
            killed_by_us: self.ending.killed,
        };
        let cause = match self.start_failure() {
            Some((stage, message)) => Cause::StartFailed { stage, message },
            None => {
                // Over before it was seen running.
                self.started_at_ms.get_or_insert(self.launched_at_ms);
                exit::classify(self.true_end(ended), evidence)
            }
        };
        match &cause {
            // The runtimes have said so on the console themselves.
            Cause::StartFailed { stage, message }
                if !matches!(&**stage, "bubblewrap" | "runsc") =>
            {
                self.announce(&format!("could not start ({stage}): {message}"));
            }
            Cause::Oom { .. } => self.announce("killed: out of memory"),
            Cause::StartFailed { .. }
            | Cause::Exited { .. }
            | Cause::Signaled { .. }
            | Cause::Timeout { .. } => (),
        }
        let hint = self.hint(&cause);
        if let Some(hint) = &hint {
            self.announce(hint);
        }
        self.exit = Some(Exit {
            iid: self.launch.iid.clone(),
            cause,
            started_at_ms: self.started_at_ms,
            ended_at_ms: clock::wall_ms(),
            reason: self.ending.reason.clone(),
            usage,
            before: self.before,
            console: (self.console_from, self.spool_next()),
            generation: self.launch.generation,
            hint,
        });
    }

    /// What a program that failed by itself may have missed.
    fn hint(&mut self, cause: &Cause) -> Option<String> {
        let failed = match cause {
            Cause::Exited { code } => *code != 0,
            Cause::Signaled { .. } => true,
            Cause::Oom { .. } | Cause::Timeout { .. } | Cause::StartFailed { .. } => false,
        };
        self.read_user_log();
        let unsupported = self.unsupported.as_ref().filter(|_| self.ending.reason.is_none());
        unsupported.filter(|_| failed)?.sentence()
    }

    /// Why the program never ran, if it did not.
    fn start_failure(&self) -> Option<(String, String)> {
        if self.failed.is_some() {
            return self.failed.clone();
        }
        // Killed before it could say anything: an end, not a failure to start.
        if self.main.is_some() || self.ending.killed {
            return None;
        }
        let said = String::from_utf8_lossy(&self.stderr_tail);
        match &self.launch.confinement {
            Confinement::Bubblewrap { .. } if self.wrapper.exit_code.is_none() => {
                let line = said.lines().rev().find(|line| line.starts_with("bwrap: "))?;
                Some(("bubblewrap".to_owned(), line.trim_start_matches("bwrap: ").to_owned()))
            }
            Confinement::Gvisor { .. } if self.wrapper.refused => {
                let line = said.lines().rev().find(|line| !line.trim().is_empty());
                let message = line.map_or("runsc ended without a word", runtime::essence);
                Some(("runsc".to_owned(), message.to_owned()))
            }
            Confinement::Bubblewrap { .. }
            | Confinement::Gvisor { .. }
            | Confinement::Itself { .. } => None,
        }
    }

    /// How the workload's own first process ended. bubblewrap turns signals into codes; the kernel
    /// remembers the truth behind the pidfd, and where it does not, 128 + n is taken for a signal.
    ///
    /// gVisor's sandbox exits with 128 + n as well, and nobody knows better. Only a signal that we have
    /// sent ourselves is believed to be one.
    fn true_end(&self, ended: Ended) -> Ended {
        match (&self.launch.confinement, ended) {
            (Confinement::Itself { .. }, _) => return ended,
            (Confinement::Gvisor { .. }, Ended::Exited(code))
                if self.ending.sent.is_some_and(|signal| signal + 128 == code) =>
            {
                return Ended::Signaled(code - 128);
            }
            (Confinement::Gvisor { .. }, _) => return ended,
            (Confinement::Bubblewrap { .. }, _) => (),
        }
        // Over before it was seen: no signal of ours can have reached it, so a code is a code.
        let Some(main) = &self.main else { return ended };
        match (process::exit_status(main.pidfd.as_fd()), ended) {
            (Some(told), _) => told,
            (None, Ended::Exited(code @ 129..=192)) => Ended::Signaled(code - 128),
            (None, _) => ended,
        }
    }
}
