//! The groups of one instance: of what the tenant runs, and of what we run for it. So the tenant pays for both.
//!
//! ```text
//!   IID              all of it: a little more of the cpus than the workload may have
//!   IID/workload     the limits of the spec
//!   IID/helpers      the shim, what an exec takes, the runsc of one: a bound of their own
//! ```
//!
//! In a hierarchy of version 1 that counts nothing of helpers, `IID` itself is the workload's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Applied, Controller, Group, Limits, Root, make, v1, v2, write};
use crate::SysError;

/// What helpers may have of the cpus beyond the limit of the workload, in percent of one: enough to carry a console
/// and to end what uses up its own.
const HELPERS_CPU_PERCENT: u64 = 10;
/// What helpers may have of memory: a shim, and sixteen runsc of an exec, take some 80 MiB.
const HELPERS_MEMORY_BYTES: u64 = 256 << 20;
/// How many threads helpers may have. One runsc has some twenty.
const HELPERS_PIDS: u64 = 1024;

/// Hierarchies of version 1 in which helpers are counted.
const COUNTED: [Controller; 4] =
    [Controller::Memory, Controller::Cpu, Controller::Cpuacct, Controller::Pids];
/// How long a helper may take to end once there is nothing left to help with, and once it is killed.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Family {
    /// The first of the three. An earlier release had no other.
    parent: Group,
    pub workload: Group,
    /// Nowhere, in a family of an earlier release.
    pub helpers: Group,
}

impl Root {
    /// The groups of this name, made or not: where they are, or where they would be made.
    pub fn family(&self, name: &str) -> Family {
        Family::of(self.group(name))
    }

    /// Those of a name that nothing has had yet.
    pub fn new_family(&self, name: &str) -> Family {
        Family::within(self.group(name))
    }
}

impl Family {
    /// As it is found.
    fn of(parent: Group) -> Self {
        let family = Self::within(parent);
        let is_split = family.helpers.exists() || family.inner_workload().any(|dir| dir.exists());
        if family.parent.exists() && !is_split {
            return Self {
                workload: family.parent.clone(),
                helpers: Group::default(),
                parent: family.parent,
            };
        }
        family
    }

    /// As it is made.
    fn within(parent: Group) -> Self {
        let counted: Vec<PathBuf> =
            COUNTED.iter().filter_map(|one| parent.v1.get(one).cloned()).collect();
        // Several controllers may be in one hierarchy.
        let is_counted = |dir: &PathBuf| counted.contains(dir);
        let below = |name: &str| Group {
            unified: parent.unified.as_ref().map(|dir| dir.join(name)),
            unified_controllers: parent.unified_controllers.clone(),
            v1: parent
                .v1
                .iter()
                .filter(|(_, dir)| is_counted(dir))
                .map(|(controller, dir)| (*controller, dir.join(name)))
                .collect(),
        };
        let (mut workload, helpers) = (below("workload"), below("helpers"));
        let whole = parent.v1.iter().filter(|(_, dir)| !is_counted(dir));
        workload.v1.extend(whole.map(|(controller, dir)| (*controller, dir.clone())));
        Self { parent, workload, helpers }
    }

    /// Whether it is there, or a part of it.
    pub fn exists(&self) -> bool {
        self.parent.exists()
    }

    /// Makes the groups, all or none. One that exists already is an error, and stays as it is.
    pub fn create(&self) -> Result<(), SysError> {
        make(self.parent.dirs())?;
        let inner = || {
            if let Some(dir) = &self.parent.unified {
                v2::hand_down(dir, &self.parent.unified_controllers)?;
            }
            make(self.helpers.dirs().chain(self.inner_workload()))?;
            // Without cpus a group of version 1 takes nobody.
            for group in [&self.parent, &self.helpers] {
                group.v1.get(&Controller::Cpuset).map_or(Ok(()), |dir| v1::prepare_cpuset(dir))?;
            }
            self.bind_helpers()
        };
        inner().inspect_err(|_| drop(self.remove_dirs()))
    }

    /// Sets the limits of the workload, and reads them back: see [`Group::apply`].
    pub fn apply(&self, limits: &Limits) -> Result<Vec<Applied>, SysError> {
        let whole = limits.cpu_percent.map(|percent| percent + HELPERS_CPU_PERCENT);
        // Nobody may be promised more than the parent has; so that grows first, and shrinks last.
        let grows = match (whole, self.cpu_percent_of_whole()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(new), Some(old)) => new >= old,
        };
        if grows {
            self.bind_whole(whole)?;
        }
        let applied = self.workload.apply(limits)?;
        if !grows {
            self.bind_whole(whole)?;
        }
        Ok(applied)
    }

    /// Sends SIGKILL to all of it, helpers too.
    pub fn kill(&self) -> Result<(), SysError> {
        self.workload.kill()?;
        self.helpers.kill()
    }

    /// Removes it. Ok when it was not there; an error while something is still inside that no kill ends. Helpers are
    /// given a moment to say their last, and are killed then.
    pub fn remove(&self) -> Result<(), SysError> {
        let mut deadline = Instant::now() + LEAVE_TIME_MAX;
        let mut killed = false;
        loop {
            let error = match self.remove_dirs() {
                Ok(()) => return Ok(()),
                Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => error,
                Err(error) => return Err(error),
            };
            // What a workload left is for its own end to find.
            if self.workload.is_populated() || killed && Instant::now() > deadline {
                return Err(error);
            }
            if Instant::now() > deadline {
                self.helpers.kill()?;
                (killed, deadline) = (true, Instant::now() + LEAVE_TIME_MAX);
            }
            thread::sleep(PAUSE);
        }
    }

    fn remove_dirs(&self) -> Result<(), SysError> {
        for dir in self.inner_workload().chain(self.helpers.dirs()).chain(self.parent.dirs()) {
            match fs::remove_dir(dir) {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(source) => return Err(SysError::io("rmdir", dir, source)),
            }
        }
        Ok(())
    }

    /// The workload's directories that are not its parent's.
    fn inner_workload(&self) -> impl Iterator<Item = &Path> {
        self.workload.dirs().filter(|dir| self.parent.dirs().all(|outer| outer != *dir))
    }

    fn bind_helpers(&self) -> Result<(), SysError> {
        let (memory, pids) = (HELPERS_MEMORY_BYTES.to_string(), HELPERS_PIDS.to_string());
        let bounds = [
            (Controller::Memory, ["memory.max", "memory.limit_in_bytes"], memory),
            (Controller::Pids, ["pids.max", "pids.max"], pids),
        ];
        for (controller, [second, first], value) in bounds {
            match self.helpers.place_of(controller) {
                Some((dir, true)) => write(dir, second, &value)?,
                Some((dir, false)) => write(dir, first, &value)?,
                None => (),
            }
        }
        Ok(())
    }

    fn cpu_percent_of_whole(&self) -> Option<u64> {
        match self.parent.place_of(Controller::Cpu)? {
            (dir, true) => v2::cpu_percent(dir),
            (dir, false) => v1::cpu_percent(dir),
        }
    }

    /// What all of it may have of the cpus.
    fn bind_whole(&self, cpu_percent: Option<u64>) -> Result<(), SysError> {
        if self.helpers.is_nowhere() {
            return Ok(());
        }
        let limits = Limits { cpu_percent, ..Limits::default() };
        match self.parent.place_of(Controller::Cpu) {
            Some((dir, true)) => v2::apply(dir, Controller::Cpu, &limits).map(drop),
            Some((dir, false)) => v1::apply(dir, Controller::Cpu, &limits).map(drop),
            None => Ok(()),
        }
    }
}
