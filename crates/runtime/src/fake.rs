//! A driver with a host of its own, kept in memory. It keeps the same contract as the real ones,
//! which the contract tests check, so tests of the loop may believe it.
//!
//! It does what [`crate::supervise`] does, in the same order, and before and after each thing the
//! daemon may die or the thing may fail: see [`sodium_sys::fault`]. Its workloads are the few commands that
//! tests use: `true`, `false`, `sleep`, `timed`, `sh -c "exit N"`, `trap`, which ignores being asked to end, and
//! `fork`, which leaves a process behind.

pub mod machine;
pub mod shim;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::fake::machine::{Machine, What};
use crate::fake::shim::{Shim, Stage};
use crate::supervise::YOUNG_MS_MAX;
use crate::{Adjust, Driver, DriverError, ExecOrder, Keep, Order, Started, StopOrder, Usage};
use sodium_model::{Iid, Isolation, LimitStatus, Observed};
use sodium_shim::client::ClientError;
use sodium_sys::SysError;
use sodium_sys::fault::{self, Bug};

/// A driver of one daemon; the machine outlives it.
#[derive(Debug)]
pub struct FakeDriver {
    machine: Arc<Mutex<Machine>>,
    epoch: u64,
    /// Whether everything on the machine happens at once, instead of when a test says so.
    hurried: bool,
    is_dear: bool,
    memory: Mutex<Memory>,
}

/// What dies with the daemon.
#[derive(Debug, Default)]
struct Memory {
    ordered: BTreeMap<Iid, u64>,
    /// Only a mistaken daemon believes it.
    pids: BTreeMap<Iid, u32>,
    looks: BTreeMap<String, Observed>,
}

impl Default for FakeDriver {
    fn default() -> Self {
        Self::hurried(Arc::default())
    }
}

impl FakeDriver {
    /// A driver for the daemon of `epoch` on a machine where nothing happens by itself.
    pub fn on(machine: Arc<Mutex<Machine>>, epoch: u64) -> Self {
        Self { machine, epoch, hurried: false, is_dear: false, memory: Mutex::default() }
    }

    /// The same, of sandboxes that cost much.
    pub fn dear(self) -> Self {
        Self { is_dear: true, ..self }
    }

    /// A driver on a machine where everything happens at once.
    pub fn hurried(machine: Arc<Mutex<Machine>>) -> Self {
        Self { hurried: true, ..Self::on(machine, 1) }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        let mut machine = self.machine.lock().expect("nobody panics while holding the machine");
        if self.hurried {
            machine.settle();
        }
        machine
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("nobody panics while holding the memory")
    }

    /// A request to the shim, which may not answer, or not to this daemon.
    fn ask(
        &self,
        iid: &Iid,
        stage: &'static str,
        request: impl FnOnce(&mut Machine) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        point(stage)?;
        let mut machine = self.machine();
        let epoch = self.epoch;
        let is_born = machine.shim(iid).is_some_and(|shim| shim.stage == Stage::Born);
        match machine.answering(iid) {
            None if is_born => {
                let source = ClientError::Connect(io::ErrorKind::NotFound.into());
                return Err(DriverError::Shim { stage, source });
            }
            None => return Err(failed(stage, "the shim does not answer")),
            Some(shim) if shim.epoch > epoch => {
                return Err(failed(stage, "a newer daemon has taken over"));
            }
            Some(shim) => shim.epoch = epoch,
        }
        request(&mut machine)?;
        drop(machine);
        point(stage)
    }

    /// The shim's word, or what lock and cgroup prove.
    fn look(&self, iid: &Iid) -> Observed {
        let mut machine = self.machine();
        let frozen = machine.groups.get(iid).copied().unwrap_or(false);
        let pid = machine.members(iid).first().copied();
        if let Some(shim) = machine.answering(iid) {
            let started_at = shim.started_at;
            return match &shim.stage {
                Stage::Born | Stage::Launching => Observed::Launching,
                Stage::Running => {
                    let started_at = started_at.unwrap_or_default();
                    Observed::Running { pid, started_at, frozen }
                }
                Stage::Exited(exit) => Observed::Exited { exit: exit.clone() },
                Stage::Stopping | Stage::Clearing(_) | Stage::Writing(_) | Stage::Written(_) => {
                    Observed::Stopping { pid, started_at }
                }
            };
        }
        let young = |shim: &mut Shim| shim.stage == Stage::Born;
        let held = machine.shim_pid(iid).is_some() && !fault::has(Bug::UnknownIsDead);
        if held {
            let ordered_at = self.memory().ordered.get(iid).copied();
            let recent = ordered_at.is_some_and(|at| machine.up_ms < at + YOUNG_MS_MAX);
            let launching = recent && machine.shim(iid).is_some_and(young);
            return if launching { Observed::Launching } else { Observed::Unknown };
        }
        if !machine.members(iid).is_empty() && !fault::has(Bug::UnknownIsDead) {
            return Observed::Orphan;
        }
        let exit = machine.exits.get(iid).map(|saved| saved.record.clone());
        let began = machine.noted.contains(iid) || exit.is_some();
        Observed::Gone { exit, began }
    }

    fn fork_shim(&self, order: &Order<'_>) {
        let mut machine = self.machine();
        let timeout_ms = order.spec.limits.timeout_seconds * 1_000;
        let shim = Shim::new(order.uid, order.spec.resolved_command(), self.epoch, timeout_ms);
        let pid = machine.spawn(Some(order.iid.clone()), What::Shim(Box::new(shim)));
        machine.truth.starts += 1;
        machine.truth.begun.insert(order.iid.clone());
        if fault::has(Bug::LockInherited)
            && let Some(shim) = machine.processes.get_mut(&pid)
        {
            shim.holds_daemon = true;
        }
        let mut memory = self.memory();
        memory.ordered.insert(order.iid.clone(), machine.up_ms);
        memory.pids.insert(order.iid.clone(), pid);
    }
}

fn point(stage: &'static str) -> Result<(), DriverError> {
    if fault::reach(stage) { Err(failed(stage, "device busy")) } else { Ok(()) }
}

fn failed(stage: &'static str, why: &str) -> DriverError {
    let source = SysError { call: "fake".to_owned(), source: io::Error::other(why.to_owned()) };
    DriverError::Host { stage, source }
}

impl Driver for FakeDriver {
    fn isolation(&self) -> Isolation {
        Isolation::Bubblewrap
    }

    fn runtime(&self) -> Result<String, String> {
        Ok("nothing".to_owned())
    }

    fn is_dear(&self) -> bool {
        self.is_dear
    }

    fn unenforced(&self) -> Vec<(&'static str, String)> {
        vec![("disk_mb", "a fake has no disk".to_owned())]
    }

    fn observe(&self, iid: &Iid) -> Result<Observed, DriverError> {
        point("look")?;
        let seen = self.look(iid);
        if fault::has(Bug::StaleObservation) {
            let sandbox = iid.as_str().split('-').next().unwrap_or_default().to_owned();
            let before = self.memory().looks.insert(sandbox, seen.clone());
            return Ok(before.unwrap_or(seen));
        }
        Ok(seen)
    }

    fn start(&self, order: &Order<'_>) -> Result<Started, DriverError> {
        assert!(self.machine().shim_pid(order.iid).is_none(), "started over something");
        point("prepare workspace")?;
        self.machine().groups.insert(order.iid.clone(), false);
        point("make run directory")?;
        self.machine().dirs.insert(order.iid.clone());
        point("start shim")?;
        self.fork_shim(order);
        // Whatever becomes of this daemon, it runs.
        let _ = fault::reach("shim started");
        Ok(Started { link: None, limits: Vec::new() })
    }

    fn stop(&self, iid: &Iid, how: &StopOrder<'_>) -> Result<(), DriverError> {
        let grace_ms = (!how.force).then_some(how.grace_ms);
        self.ask(iid, "stop", |machine| {
            Shim::stop(machine, iid, grace_ms, how.reason);
            Ok(())
        })
    }

    fn adjust(&self, iid: &Iid, _: &Adjust<'_>) -> Result<Vec<LimitStatus>, DriverError> {
        self.ask(iid, "set limits", |_| Ok(()))?;
        Ok(Vec::new())
    }

    fn can_freeze(&self) -> bool {
        true
    }

    fn freeze(&self, iid: &Iid, frozen: bool) -> Result<(), DriverError> {
        point("freeze")?;
        let mut machine = self.machine();
        if let Some(group) = machine.groups.get_mut(iid) {
            *group = frozen;
        }
        drop(machine);
        point("frozen")
    }

    fn checkpoint(&self, iid: &Iid, _: &Keep<'_>) -> Result<u64, DriverError> {
        Err(DriverError::Refused(format!("{iid}: a fake has no memory to keep")))
    }

    fn kill_orphan(&self, iid: &Iid) -> Result<(), DriverError> {
        point("kill orphan")?;
        let mut machine = self.machine();
        if fault::has(Bug::KillNotedPid)
            && let Some(pid) = self.memory().pids.get(iid)
        {
            machine.kill(*pid, iid);
        }
        machine.kill_group(iid);
        drop(machine);
        point("orphan killed")
    }

    fn kill_shim(&self, iid: &Iid) -> Result<(), DriverError> {
        point("kill shim")?;
        let mut machine = self.machine();
        if let Some(pid) = machine.shim_pid(iid) {
            machine.kill(pid, iid);
        }
        drop(machine);
        self.kill_orphan(iid)
    }

    fn clean_up(&self, iid: &Iid) -> Result<(), DriverError> {
        point("clean up")?;
        let mut machine = self.machine();
        let ended = machine.answering(iid).map(|shim| matches!(shim.stage, Stage::Exited(_)));
        match (ended, machine.shim_pid(iid)) {
            (Some(true), Some(pid)) => drop(machine.processes.remove(&pid)),
            (None, None) => (),
            _ => return Err(DriverError::Refused(format!("{iid} has not ended"))),
        }
        drop(machine);
        point("remove cgroup")?;
        let mut machine = self.machine();
        if !machine.members(iid).is_empty() {
            return Err(failed("remove cgroup", "device busy"));
        }
        machine.groups.remove(iid);
        drop(machine);
        point("remove run directory")?;
        let mut machine = self.machine();
        machine.dirs.remove(iid);
        machine.noted.remove(iid);
        drop(machine);
        point("remove exit")?;
        self.machine().exits.remove(iid);
        self.memory().ordered.remove(iid);
        point("cleaned up")
    }

    fn usage(&self, iid: &Iid) -> Usage {
        self.machine().used.get(iid).copied().unwrap_or_default()
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
