//! What a shim does, one step at a time: the same order of things as in the real one, so that whoever
//! dies between two of them can be tried out.

use crate::fake::machine::{Machine, Saved, Told, What, killed};
use sodium_model::{ExitKind, ExitRecord, Iid, Time};
use sodium_sys::fault::{self, Bug};

/// How long what ran out of time may take to end.
const TIMEOUT_GRACE_MS: u64 = 10_000;

/// The process beside an instance.
#[derive(Debug)]
pub struct Shim {
    pub uid: uuid::Uuid,
    pub command: Vec<String>,
    pub stage: Stage,
    pub epoch: u64,
    pub started_at: Option<Time>,
    /// How the first process ended.
    pub status: Option<ExitKind>,
    pub reason: Option<String>,
    /// When the grace is over.
    pub kill_at: Option<u64>,
    /// How long the workload may run, and until when that is.
    pub timeout_ms: u64,
    pub end_at: Option<u64>,
    pub timed_out: bool,
}

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It holds its lock and listens to nobody yet.
    Born,
    Launching,
    Running,
    Stopping,
    /// The first process has ended: the others are to follow.
    Clearing(ExitKind),
    Writing(ExitRecord),
    Written(ExitRecord),
    /// Told to whoever asks.
    Exited(ExitRecord),
}

impl Shim {
    pub fn new(uid: uuid::Uuid, command: Vec<String>, epoch: u64, timeout_ms: u64) -> Self {
        Self {
            uid,
            command,
            stage: Stage::Born,
            epoch,
            started_at: None,
            status: None,
            reason: None,
            kill_at: None,
            timeout_ms,
            end_at: None,
            timed_out: false,
        }
    }

    /// The next thing. False: it waits.
    pub(crate) fn step(machine: &mut Machine, pid: u32, iid: &Iid) -> bool {
        let now = machine.now;
        let up_ms = machine.up_ms;
        let Some(What::Shim(shim)) = machine.processes.get_mut(&pid).map(|one| &mut one.what)
        else {
            return false;
        };
        let next = match shim.stage.clone() {
            Stage::Born => {
                let (uid, command) = (shim.uid, shim.command.clone());
                launch(machine, iid, uid, &command)
            }
            Stage::Launching => {
                shim.started_at = Some(now);
                shim.end_at = (shim.timeout_ms > 0).then_some(up_ms + shim.timeout_ms);
                Stage::Running
            }
            Stage::Running | Stage::Stopping if shim.status.is_some() => {
                Stage::Clearing(shim.status.take().unwrap_or_else(killed))
            }
            Stage::Running if shim.end_at.is_some_and(|at| at <= up_ms) => {
                (shim.end_at, shim.timed_out) = (None, true);
                Self::stop(machine, iid, Some(TIMEOUT_GRACE_MS), "timeout");
                return true;
            }
            Stage::Stopping if shim.kill_at.is_some_and(|at| at <= up_ms) => {
                shim.kill_at = None;
                machine.kill_group(iid);
                return true;
            }
            Stage::Running | Stage::Stopping | Stage::Exited(_) => return false,
            Stage::Clearing(kind) => {
                (shim.kill_at, shim.end_at) = (None, None);
                let kind = if shim.timed_out { out_of_time(kind) } else { kind };
                if shim.timed_out {
                    machine.truth.timed_out.insert(iid.clone());
                }
                let Some(shim) = machine.shim(iid) else { return false };
                let record = shim.record(iid, kind, now);
                machine.kill_group(iid);
                Stage::Writing(record)
            }
            Stage::Writing(record) => {
                let saved = Saved { record: record.clone(), synced: false };
                machine.exits.insert(iid.clone(), saved);
                if fault::has(Bug::ExitBeforeSync) {
                    Stage::Exited(record)
                } else {
                    Stage::Written(record)
                }
            }
            Stage::Written(record) => {
                if let Some(saved) = machine.exits.get_mut(iid) {
                    saved.synced = true;
                }
                Stage::Exited(record)
            }
        };
        if let Stage::Exited(record) = &next {
            let told = Told { exit: record.clone(), at: now };
            machine.truth.told.insert(iid.clone(), told);
        }
        machine.truth.news.insert(iid.clone());
        if let Some(shim) = machine.shim(iid) {
            shim.stage = next;
        }
        true
    }

    fn record(&self, iid: &Iid, kind: ExitKind, now: Time) -> ExitRecord {
        ExitRecord {
            started_at: self.started_at,
            reason: self.reason.clone(),
            ..ExitRecord::unmeasured(iid.clone(), kind, now)
        }
    }

    /// Asks the workload to end, or ends it. A later word may hasten the end and not put it off.
    pub(crate) fn stop(machine: &mut Machine, iid: &Iid, grace_ms: Option<u64>, reason: &str) {
        let up_ms = machine.up_ms;
        let Some(shim) = machine.shim(iid) else { return };
        if !matches!(shim.stage, Stage::Launching | Stage::Running | Stage::Stopping) {
            return;
        }
        shim.stage = Stage::Stopping;
        shim.reason.get_or_insert_with(|| reason.to_owned());
        let at = up_ms + grace_ms.unwrap_or(0);
        shim.kill_at = Some(shim.kill_at.map_or(at, |earlier| earlier.min(at)));
        machine.truth.news.insert(iid.clone());
        if grace_ms.is_none() {
            return;
        }
        machine.groups.insert(iid.clone(), false);
        let asked = ExitKind::Signaled { signal: "SIGTERM".to_owned() };
        for pid in machine.members(iid) {
            if matches!(machine.processes[&pid].what, What::Workload { obeys: true, .. }) {
                machine.end(pid, asked.clone());
            }
        }
    }
}

/// The same end, for want of time.
fn out_of_time(kind: ExitKind) -> ExitKind {
    match kind {
        ExitKind::Exited { code } => ExitKind::Timeout { code: Some(code), signal: None },
        ExitKind::Signaled { signal } => ExitKind::Timeout { code: None, signal: Some(signal) },
        ExitKind::Oom { .. }
        | ExitKind::Timeout { .. }
        | ExitKind::Disk { .. }
        | ExitKind::StartFailed { .. }
        | ExitKind::Lost { .. } => kind,
    }
}

/// Runs the few commands that a fake knows.
fn launch(machine: &mut Machine, iid: &Iid, uid: uuid::Uuid, command: &[String]) -> Stage {
    machine.noted.insert(iid.clone());
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let code = |code| Some(ExitKind::Exited { code });
    let (obeys, ends, forks) = match words[..] {
        ["true"] => (true, code(0), false),
        ["false"] => (true, code(1), false),
        ["sh", "-c", script] if script.starts_with("exit ") => {
            (true, code(script[5..].parse().unwrap_or(2)), false)
        }
        ["sleep" | "timed", ..] => (true, None, false),
        ["trap", ..] => (false, None, false),
        ["fork", ..] => (true, None, true),
        _ => {
            let message = format!("{}: not found", words.first().unwrap_or(&"nothing"));
            return Stage::Clearing(ExitKind::StartFailed { stage: "exec".to_owned(), message });
        }
    };
    machine.spawn(Some(iid.clone()), What::Workload { obeys, ends });
    if forks {
        machine.spawn(Some(iid.clone()), What::Helper);
    }
    machine.truth.ran.insert(iid.clone(), uid);
    Stage::Launching
}
