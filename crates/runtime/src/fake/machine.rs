//! A kernel kept in memory: processes whose numbers are used again at once, cgroups, locks that live as
//! long as their holders, files that a loss of power takes back, and reboots.
//!
//! It keeps account of what really happened, so that a test can tell a lie from the truth.

use std::collections::{BTreeMap, BTreeSet};

use crate::Usage;
use crate::fake::shim::{Shim, Stage};
use sodium_model::{ExitKind, ExitRecord, Iid, Time};

/// Numbers of processes begin here.
const PID_FIRST: u32 = 100;

/// See the module.
#[derive(Debug, Default)]
pub struct Machine {
    pub now: Time,
    /// Since the last boot, whatever becomes of `now`.
    pub up_ms: u64,
    pub boots: u32,
    pub processes: BTreeMap<u32, Process>,
    /// Cgroups, and whether they are frozen.
    pub groups: BTreeMap<Iid, bool>,
    /// Run directories.
    pub dirs: BTreeSet<Iid>,
    /// Locks in which a shim has noted that it took them.
    pub noted: BTreeSet<Iid>,
    pub exits: BTreeMap<Iid, Saved>,
    /// What the kernel has counted; nothing, where a test says nothing else.
    pub used: BTreeMap<Iid, Usage>,
    pub truth: Truth,
}

/// A process. What it holds is free when it is gone.
#[derive(Debug)]
pub struct Process {
    /// Whose it is; a stranger's has none.
    pub iid: Option<Iid>,
    pub what: What,
    /// Whether it inherited the lock of the daemon.
    pub holds_daemon: bool,
    pub stopped: bool,
}

#[derive(Debug)]
pub enum What {
    Daemon,
    Shim(Box<Shim>),
    /// The first process of an instance.
    Workload {
        obeys: bool,
        ends: Option<ExitKind>,
    },
    /// One that it forked away.
    Helper,
    Stranger,
}

/// A file with an exit.
#[derive(Debug)]
pub struct Saved {
    pub record: ExitRecord,
    pub synced: bool,
}

/// What a shim told.
#[derive(Debug)]
pub struct Told {
    pub exit: ExitRecord,
    pub at: Time,
}

/// What really happened, for those who check.
#[derive(Debug, Default)]
pub struct Truth {
    /// Instances whose workload ran at some time, of which sandbox.
    pub ran: BTreeMap<Iid, uuid::Uuid>,
    /// How an instance ended, once its shim said so to anybody.
    pub told: BTreeMap<Iid, Told>,
    /// How its first process ended, whether or not anybody knows.
    pub ended: BTreeMap<Iid, ExitKind>,
    /// Instances that a shim ended because their time was over.
    pub timed_out: BTreeSet<Iid>,
    pub starts: u64,
    /// Instances that a shim was ordered for.
    pub begun: BTreeSet<Iid>,
    /// Signals that hit somebody they were not meant for.
    pub strays: Vec<String>,
    /// Instances of which something changed since somebody asked.
    pub news: BTreeSet<Iid>,
}

impl Machine {
    /// The lowest free number.
    pub fn spawn(&mut self, iid: Option<Iid>, what: What) -> u32 {
        let free = (PID_FIRST..).find(|pid| !self.processes.contains_key(pid));
        let pid = free.expect("there are few of them");
        let process = Process { iid, what, holds_daemon: false, stopped: false };
        self.processes.insert(pid, process);
        pid
    }

    /// Processes of some kind, by their numbers.
    pub fn pids(&self, wanted: impl Fn(&What) -> bool) -> Vec<u32> {
        let ours = self.processes.iter().filter(|(_, process)| wanted(&process.what));
        ours.map(|(pid, _)| *pid).collect()
    }

    /// The shim of an instance: whoever holds its lock.
    pub fn shim(&mut self, iid: &Iid) -> Option<&mut Shim> {
        let pid = self.shim_pid(iid)?;
        let What::Shim(shim) = &mut self.processes.get_mut(&pid)?.what else { return None };
        Some(shim)
    }

    pub fn shim_pid(&self, iid: &Iid) -> Option<u32> {
        let is_it = |process: &Process| {
            matches!(process.what, What::Shim(_)) && process.iid.as_ref() == Some(iid)
        };
        self.processes.iter().find(|(_, process)| is_it(process)).map(|(pid, _)| *pid)
    }

    /// The shim, if it answers.
    pub fn answering(&mut self, iid: &Iid) -> Option<&mut Shim> {
        let pid = self.shim_pid(iid)?;
        if self.processes[&pid].stopped {
            return None;
        }
        self.shim(iid).filter(|shim| shim.stage != Stage::Born)
    }

    /// Processes in the cgroup of an instance. Its shim is not in there.
    pub fn members(&self, iid: &Iid) -> Vec<u32> {
        let inside = |process: &Process| {
            matches!(process.what, What::Workload { .. } | What::Helper)
                && process.iid.as_ref() == Some(iid)
        };
        self.processes.iter().filter(|(_, one)| inside(one)).map(|(pid, _)| *pid).collect()
    }

    /// Instances of which a process of the workload runs.
    pub fn running(&self) -> Vec<Iid> {
        let of_workload = self
            .processes
            .values()
            .filter(|process| matches!(process.what, What::Workload { .. } | What::Helper));
        let iids: BTreeSet<Iid> = of_workload.filter_map(|process| process.iid.clone()).collect();
        iids.into_iter().collect()
    }

    /// Whether the lock of the daemon could not be taken.
    pub fn daemon_locked(&self) -> bool {
        self.processes.values().any(|process| process.holds_daemon)
    }

    /// Everything of which something is there.
    pub fn residues(&self) -> BTreeSet<Iid> {
        let of_processes = self.processes.values().filter_map(|process| process.iid.clone());
        of_processes.chain(self.groups.keys().cloned()).chain(self.dirs.iter().cloned()).collect()
    }

    /// Ends a process, whoever it is. A shim learns how its own ended.
    pub fn end(&mut self, pid: u32, kind: ExitKind) {
        let Some(process) = self.processes.remove(&pid) else { return };
        let Some(iid) = process.iid else { return };
        self.truth.news.insert(iid.clone());
        if let What::Workload { .. } = process.what {
            self.truth.ended.insert(iid.clone(), kind.clone());
            if let Some(shim) = self.shim(&iid) {
                shim.status = Some(kind);
            }
        }
    }

    /// A signal to a number, meant for an instance.
    pub fn kill(&mut self, pid: u32, meant: &Iid) {
        let Some(process) = self.processes.get(&pid) else { return };
        if process.iid.as_ref() != Some(meant) {
            self.truth.strays.push(format!("{pid} was meant for {meant}: {process:?}"));
        }
        self.end(pid, killed());
    }

    /// `cgroup.kill`.
    pub fn kill_group(&mut self, iid: &Iid) {
        for pid in self.members(iid) {
            self.end(pid, killed());
        }
    }

    /// Lets one process do the next thing it has to do. False: there is none.
    pub fn step(&mut self, pid: u32) -> bool {
        let Some(process) = self.processes.get(&pid).filter(|process| !process.stopped) else {
            return false;
        };
        let (iid, frozen) = match &process.iid {
            Some(iid) => (iid.clone(), self.groups.get(iid).copied().unwrap_or(false)),
            None => return false,
        };
        match &process.what {
            What::Shim(_) => Shim::step(self, pid, &iid),
            What::Workload { ends: Some(kind), .. } if !frozen => {
                let kind = kind.clone();
                self.end(pid, kind);
                true
            }
            What::Workload { .. } | What::Helper | What::Daemon | What::Stranger => false,
        }
    }

    /// Lets everyone do what there is to do.
    pub fn settle(&mut self) {
        loop {
            let pids: Vec<u32> = self.processes.keys().copied().collect();
            if !pids.into_iter().any(|pid| self.step(pid)) {
                return;
            }
        }
    }

    /// When something happens by itself next, on the clock of `up_ms`.
    pub fn next_deadline(&self) -> Option<u64> {
        let of = |process: &Process| {
            let What::Shim(shim) = &process.what else { return None };
            let running = shim.end_at.filter(|_| shim.stage == Stage::Running);
            [shim.kill_at, running].into_iter().flatten().min().filter(|_| !process.stopped)
        };
        self.processes.values().filter_map(of).min()
    }

    /// Starts over with what was on the disk; after a loss of power, with what was synced.
    pub fn reboot(&mut self, power_lost: bool) {
        self.boots += 1;
        self.up_ms = 0;
        self.processes.clear();
        self.groups.clear();
        self.dirs.clear();
        self.noted.clear();
        if power_lost {
            self.exits.retain(|_, saved| saved.synced);
        }
    }
}

/// By a signal that nobody can catch.
pub fn killed() -> ExitKind {
    ExitKind::Signaled { signal: "SIGKILL".to_owned() }
}
