//! A driver with a host of its own, kept in memory. It keeps the same contract as the real ones,
//! which the contract tests check, so tests of the loop may believe it.
//!
//! Its workloads are the few commands the contract uses: `true`, `false`, `sleep`, `sh -c "exit N"`,
//! and `trap`, which ignores being asked to end.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};

use crate::driver::{Driver, DriverError, ExecOrder, Keep, Order, Started, StopOrder, Usage};
use crate::model::{ExitKind, ExitRecord, Iid, Isolation, LimitStatus, Limits, Observed, Time};
use crate::sys::SysError;

/// The in-memory host.
#[derive(Debug, Default)]
pub struct FakeDriver {
    host: Mutex<Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    instances: BTreeMap<Iid, Instance>,
    failures_left: u32,
    now: Time,
    starts: u64,
}

#[derive(Debug, Clone)]
struct Instance {
    state: State,
    obeys: bool,
    uid: uuid::Uuid,
    frozen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running {
        since: Time,
    },
    Exited(ExitRecord),
    /// Its shim is dead; it goes on.
    Orphan,
    /// Its shim is stopped: alive, and deaf.
    Deaf {
        since: Time,
    },
    /// Dead without a word.
    Lost,
}

impl FakeDriver {
    /// The next `count` calls that change something fail.
    pub fn fail_next(&self, count: u32) {
        self.lock().failures_left = count;
    }

    pub fn set_time(&self, now: Time) {
        self.lock().now = now;
    }

    /// How often anything was started.
    pub fn starts(&self) -> u64 {
        self.lock().starts
    }

    /// Instances that run, whether or not they can be watched.
    pub fn running(&self) -> Vec<Iid> {
        let runs = |state: &State| {
            matches!(state, State::Running { .. } | State::Orphan | State::Deaf { .. })
        };
        let host = self.lock();
        host.instances
            .iter()
            .filter(|(_, one)| runs(&one.state))
            .map(|(iid, _)| iid.clone())
            .collect()
    }

    /// A running workload ends by itself.
    pub fn exit(&self, iid: &Iid, code: i32) {
        self.lock().end(iid, ExitKind::Exited { code }, None);
    }

    /// The shim is killed; what it watched goes on.
    pub fn kill_only_the_shim(&self, iid: &Iid) {
        self.lock().become_if_alive(iid, |_| State::Orphan);
    }

    /// The shim stops answering.
    pub fn deafen(&self, iid: &Iid) {
        self.lock().become_if_alive(iid, |since| State::Deaf { since });
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.host.lock().expect("no test panics while holding the host")
    }
}

impl Instance {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }
}

impl Machine {
    /// Fails if a test asked for it.
    fn stumble(&mut self, stage: &'static str) -> Result<(), DriverError> {
        if self.failures_left == 0 {
            return Ok(());
        }
        self.failures_left -= 1;
        let source = SysError { call: "fake".to_owned(), source: io::Error::other("device busy") };
        Err(DriverError::Host { stage, source })
    }

    fn end(&mut self, iid: &Iid, kind: ExitKind, reason: Option<&str>) {
        let now = self.now;
        let Some(instance) = self.instances.get_mut(iid) else { return };
        let State::Running { since } = instance.state else { return };
        instance.state = State::Exited(ExitRecord {
            iid: iid.clone(),
            kind,
            started_at: Some(since),
            ended_at: now,
            reason: reason.map(str::to_owned),
            oom_kills: 0,
            memory_peak_bytes: 0,
            cpu_usec: 0,
            throttled_usec: 0,
            hint: None,
        });
    }

    fn become_if_alive(&mut self, iid: &Iid, next: impl Fn(Time) -> State) {
        if let Some(instance) = self.instances.get_mut(iid)
            && let State::Running { since } = instance.state
        {
            instance.state = next(since);
        }
    }
}

impl Driver for FakeDriver {
    fn isolation(&self) -> Isolation {
        Isolation::Bubblewrap
    }

    fn runtime(&self) -> Result<String, String> {
        Ok("nothing".to_owned())
    }

    fn unenforced(&self) -> Vec<(&'static str, String)> {
        vec![("disk_mb", "a fake has no disk".to_owned())]
    }

    fn observe(&self, iid: &Iid) -> Result<Observed, DriverError> {
        let host = self.lock();
        let Some(instance) = host.instances.get(iid) else {
            return Ok(Observed::Gone { exit: None, residue: false });
        };
        Ok(match &instance.state {
            State::Running { since } => {
                Observed::Running { pid: Some(1), started_at: *since, frozen: instance.frozen }
            }
            State::Exited(exit) => Observed::Exited { exit: exit.clone() },
            State::Orphan => Observed::Orphan,
            State::Deaf { .. } => Observed::Unknown,
            State::Lost => Observed::Gone { exit: None, residue: true },
        })
    }

    fn start(&self, order: &Order<'_>) -> Result<Started, DriverError> {
        let mut host = self.lock();
        assert!(!host.instances.contains_key(order.iid), "started over something");
        let others = host.instances.values().filter(|one| one.uid == order.uid);
        let alive =
            others.filter(|one| !matches!(one.state, State::Exited(_) | State::Lost)).count();
        assert_eq!(alive, 0, "two instances of one sandbox");
        host.stumble("start")?;
        host.starts += 1;
        let command = order.spec.resolved_command();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let obeys = words[0] != "trap";
        let (now, uid) = (host.now, order.uid);
        let state = State::Running { since: now };
        host.instances.insert(order.iid.clone(), Instance { state, obeys, uid, frozen: false });
        let ended = match words[..] {
            ["true"] => Some(ExitKind::Exited { code: 0 }),
            ["false"] => Some(ExitKind::Exited { code: 1 }),
            ["sh", "-c", script] if script.starts_with("exit ") => {
                Some(ExitKind::Exited { code: script[5..].parse().unwrap_or(2) })
            }
            ["sleep" | "trap", ..] => None,
            _ => Some(ExitKind::StartFailed {
                stage: "exec".to_owned(),
                message: format!("{}: not found", words[0]),
            }),
        };
        if let Some(kind) = ended {
            host.end(order.iid, kind, None);
        }
        Ok(Started { link: None, limits: Vec::new() })
    }

    fn stop(&self, iid: &Iid, how: &StopOrder<'_>) -> Result<(), DriverError> {
        let mut host = self.lock();
        host.stumble("stop")?;
        let obeys = host.instances.get(iid).is_some_and(|one| one.obeys);
        let signal = if how.force || !obeys { "SIGKILL" } else { how.signal };
        host.end(iid, ExitKind::Signaled { signal: signal.to_owned() }, Some(how.reason));
        Ok(())
    }

    fn adjust(&self, _: &Iid, _: &Limits) -> Result<Vec<LimitStatus>, DriverError> {
        self.lock().stumble("adjust").map(|()| Vec::new())
    }

    fn can_freeze(&self) -> bool {
        true
    }

    fn freeze(&self, iid: &Iid, frozen: bool) -> Result<(), DriverError> {
        let mut host = self.lock();
        host.stumble("freeze")?;
        if let Some(instance) = host.instances.get_mut(iid) {
            instance.frozen = frozen;
        }
        Ok(())
    }

    fn checkpoint(&self, iid: &Iid, _: &Keep<'_>) -> Result<u64, DriverError> {
        let mut host = self.lock();
        host.stumble("checkpoint")?;
        let running = host.instances.get(iid).is_some_and(|one| one.is_running());
        if running { Ok(1) } else { Err(DriverError::Refused(format!("{iid} is not running"))) }
    }

    fn kill_orphan(&self, iid: &Iid) -> Result<(), DriverError> {
        let mut host = self.lock();
        host.stumble("kill orphan")?;
        if let Some(instance) = host.instances.get_mut(iid)
            && !matches!(instance.state, State::Exited(_))
        {
            instance.state = State::Lost;
        }
        Ok(())
    }

    fn kill_shim(&self, iid: &Iid) -> Result<(), DriverError> {
        self.kill_orphan(iid)
    }

    fn clean_up(&self, iid: &Iid) -> Result<(), DriverError> {
        let mut host = self.lock();
        host.stumble("clean up")?;
        let alive = host
            .instances
            .get(iid)
            .is_some_and(|one| !matches!(one.state, State::Exited(_) | State::Lost));
        if alive {
            return Err(DriverError::Refused(format!("{iid} has not ended")));
        }
        host.instances.remove(iid);
        Ok(())
    }

    fn usage(&self, _: &Iid) -> Usage {
        Usage::default()
    }

    fn workload_cpu_usec(&self, _: &Iid) -> u64 {
        0
    }

    fn exec(&self, _: &Iid, _: &ExecOrder<'_>) -> Result<UnixStream, DriverError> {
        Err(DriverError::Refused("a fake runs nothing".to_owned()))
    }

    fn connect(&self, _: &Iid) -> Option<UnixStream> {
        None
    }
}
