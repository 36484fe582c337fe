//! Control groups: v1, v2, and the hybrid of both.
//!
//! A [`Group`] is one name in every hierarchy that serves us. Where version 2 is mounted it is used
//! for birth (a process can be cloned into it), killing, and knowing whether anything is left;
//! limits are set wherever the controller for them is attached, v2 first. A group is plain paths,
//! so that the shim can be told of it in a file. Each instance has a [`Family`] of them.
//!
//! ```text
//!   hybrid:  unified/sodiumd-1a2b/IID            birth, kill, populated, cpu.stat
//!            {memory,cpu,pids,blkio}/sodiumd-1a2b/IID      limits, accounting
//!   v2:      sodiumd-1a2b/IID                    everything, where `place` says
//! ```

mod family;
mod place;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

pub use self::family::Family;
use crate::SysError;

/// The resource a controller governs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    Memory,
    Cpu,
    Cpuacct,
    Pids,
    Blkio,
    Cpuset,
}

impl Controller {
    const ALL: [Self; 6] =
        [Self::Memory, Self::Cpu, Self::Cpuacct, Self::Pids, Self::Blkio, Self::Cpuset];

    /// Its name in version 1.
    fn v1_name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Pids => "pids",
            Self::Blkio => "blkio",
            Self::Cpuset => "cpuset",
        }
    }

    /// Its name in version 2, where cpu accounting needs none.
    fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Cpu => Some("cpu"),
            Self::Pids => Some("pids"),
            Self::Blkio => Some("io"),
            Self::Cpuset => Some("cpuset"),
            Self::Cpuacct => None,
        }
    }
}

/// Where this daemon's groups live in each hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    unified: Option<PathBuf>,
    /// Which controllers version 2 governs here.
    unified_controllers: Vec<Controller>,
    v1: BTreeMap<Controller, PathBuf>,
    /// Where groups of earlier daemons still are, which ran in another group than we do.
    #[serde(skip)]
    former: Vec<Root>,
}

/// One group: the same name in every hierarchy that serves us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub unified: Option<PathBuf>,
    #[serde(default)]
    pub unified_controllers: Vec<Controller>,
    pub v1: BTreeMap<Controller, PathBuf>,
}

/// What to allow. `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub cpu_percent: Option<u64>,
    /// So many cpus are to be seen, whatever the share of them is. `None`: all, and nothing is set.
    pub cpus: Option<Cpus>,
    pub pids: Option<u64>,
    pub io: Option<Io>,
}

/// Which cpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    pub count: u64,
    /// Groups with other turns are given other cpus.
    pub turn: u64,
}

/// A limit on what goes to a disk and comes from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Major and minor number.
    pub device: (u64, u64),
    /// Each way; `None` unlimited.
    pub bytes_per_second: Option<u64>,
}

/// One limit as the kernel now has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub controller: Controller,
    /// The file that governs it, such as `cgroup v1 memory.limit_in_bytes`.
    pub mechanism: String,
    /// What the kernel says it is, in the unit of [`Limits`]; `None` unlimited.
    pub read_back: Option<u64>,
}

/// What a group has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub memory_bytes: u64,
    /// Of that, what the kernel would give up first: pages of files that nobody has used lately.
    pub memory_cache_bytes: u64,
    pub memory_peak_bytes: u64,
    pub oom_kills: u64,
    pub cpu_usec: u64,
    pub throttled_usec: u64,
    /// Periods in which it ran, and in how many of them it was stopped.
    pub periods: u64,
    pub throttled_periods: u64,
    pub pids: u64,
    pub pids_peak: u64,
    /// How often one more process was refused.
    pub pids_refused: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
}

impl Usage {
    /// What it needs: without what is only kept because there is room.
    pub fn memory_used_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.memory_cache_bytes)
    }
}

impl Root {
    /// Finds the hierarchies and makes the directory `name` in each. What cannot be made is left
    /// out: the limits that need it will say so.
    pub fn detect(name: &str) -> Self {
        let mounts = super::mount::table().unwrap_or_default();
        let mut root = Self::from_mounts(&mounts);
        if let Some(mount) = root.unified.take() {
            let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            // Beside version 1, it limits nothing, and nobody minds where we are in it.
            let own = place::own(&cgroups).filter(|_| root.v1.is_empty());
            root.unified = place::make(&mount, own.as_deref(), name, super::is_root());
            root.unified_controllers = root.unified.as_deref().map_or_else(Vec::new, v2::governed);
        }
        // A controller is attached to one hierarchy only; should both claim it, v2 governs. What v2
        // accounts for anyway needs no directory in v1.
        let governed = root.unified_controllers.clone();
        root.v1.retain(|controller, _| !governed.contains(controller));
        if root.unified.is_some() {
            root.v1.remove(&Controller::Cpuacct);
        }
        root.v1.retain(|controller, mount| {
            *mount = mount.join(name);
            let made = fs::create_dir_all(&*mount).is_ok();
            made && (*controller != Controller::Cpuset || v1::prepare_cpuset(mount).is_ok())
        });
        root
    }

    /// Notes in this file where we are, and finds the groups of earlier daemons that noted it there: started from
    /// a shell, or by another release of the service manager, they were elsewhere.
    pub fn remember(&mut self, file: &Path) -> Result<(), SysError> {
        let noted = fs::read(file).unwrap_or_default();
        let noted: Vec<Self> = serde_json::from_slice(&noted).unwrap_or_default();
        self.former = noted
            .into_iter()
            .filter(|root| {
                let same = (&root.unified, &root.v1) == (&self.unified, &self.v1);
                let empty = root.names().is_empty();
                if empty && !same {
                    root.remove();
                }
                !empty && !same
            })
            .collect();
        let noted: Vec<&Self> = [&*self].into_iter().chain(&self.former).collect();
        let json = serde_json::to_vec(&noted).expect("controllers are strings as keys");
        let half = file.with_extension("new");
        let written = fs::write(&half, json).and_then(|()| fs::rename(&half, file));
        written.map_err(|source| SysError::io("write", file, source))
    }

    /// Mount points by `/proc/self/mountinfo`, before anything is made in them.
    fn from_mounts(mountinfo: &str) -> Self {
        let mut root = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => root.unified = root.unified.or(Some(point)),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    for controller in Controller::ALL {
                        if options.split(',').any(|option| option == controller.v1_name()) {
                            root.v1.entry(controller).or_insert_with(|| point.clone());
                        }
                    }
                }
                _ => (),
            }
        }
        root
    }

    /// Whether nothing here can limit anything.
    pub fn is_empty(&self) -> bool {
        self.unified.is_none() && self.v1.is_empty()
    }

    /// Whether anything here can govern this resource.
    pub fn governs(&self, controller: Controller) -> bool {
        self.unified_controllers.contains(&controller) || self.v1.contains_key(&controller)
    }

    /// What kind it is, in a few words.
    pub fn kind(&self) -> String {
        let names = |controllers: &mut dyn Iterator<Item = Controller>| {
            controllers.map(Controller::v1_name).collect::<Vec<_>>().join(", ")
        };
        let second = names(&mut self.unified_controllers.iter().copied());
        let first = names(&mut self.v1.keys().copied());
        match (self.unified.is_some(), first.is_empty()) {
            (true, true) => format!("version 2: {second}"),
            (true, false) if second.is_empty() => {
                format!("hybrid: version 2 for births, kills and freezing, version 1 for {first}")
            }
            (true, false) => format!("hybrid: version 2 for {second}, version 1 for {first}"),
            (false, _) => format!("version 1: {first}"),
        }
    }

    /// Whether groups can be frozen: by version 2 alone.
    pub fn can_freeze(&self) -> bool {
        self.unified.is_some()
    }

    /// The group of this name, made or not: where it is, or where it would be made.
    fn group(&self, name: &str) -> Group {
        let mut former = self.former.iter().map(|root| root.group_here(name));
        former.find(Group::exists).unwrap_or_else(|| self.group_here(name))
    }

    fn group_here(&self, name: &str) -> Group {
        Group {
            unified: self.unified.as_ref().map(|dir| dir.join(name)),
            unified_controllers: self.unified_controllers.clone(),
            v1: self.v1.iter().map(|(controller, dir)| (*controller, dir.join(name))).collect(),
        }
    }

    /// Names of all groups that exist, in any hierarchy.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .dirs()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Removes the directories made by [`Root::detect`], if nothing is left in them.
    pub fn remove(&self) {
        for dir in self.dirs() {
            let _ = fs::remove_dir(dir);
        }
    }

    /// Former ones too, which have no former ones themselves.
    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let roots = [self].into_iter().chain(&self.former);
        roots.flat_map(|root| root.unified.iter().chain(root.v1.values())).map(PathBuf::as_path)
    }
}

impl Group {
    /// Sets the limits and reads them back. A limit whose controller is nowhere is not in the
    /// answer; one that the kernel refuses is an error.
    pub fn apply(&self, limits: &Limits) -> Result<Vec<Applied>, SysError> {
        let mut applied = Vec::new();
        let always = [Controller::Memory, Controller::Cpu, Controller::Pids];
        // In version 1, a group without cpus takes nobody.
        let first = self.v1.contains_key(&Controller::Cpuset);
        let cpuset = Some(Controller::Cpuset).filter(|_| first || limits.cpus.is_some());
        let io = limits.io.map(|_| Controller::Blkio);
        for controller in always.into_iter().chain(cpuset).chain(io) {
            match self.place_of(controller) {
                Some((dir, true)) => applied.push(v2::apply(dir, controller, limits)?),
                Some((dir, false)) => applied.push(v1::apply(dir, controller, limits)?),
                None => (),
            }
        }
        Ok(applied)
    }

    /// Where this controller governs it, and whether by version 2.
    fn place_of(&self, controller: Controller) -> Option<(&Path, bool)> {
        let second = self.unified.as_deref();
        let second = second.filter(|_| self.unified_controllers.contains(&controller));
        let first = || self.v1.get(&controller).map(|dir| (dir.as_path(), false));
        second.map(|dir| (dir, true)).or_else(first)
    }

    /// The v2 directory, to clone into.
    pub fn open_unified(&self) -> Result<Option<OwnedFd>, SysError> {
        self.unified.as_deref().map(open).transpose()
    }

    /// Moves the calling process, which has one thread, into the v1 groups.
    ///
    /// Writing 0 to `tasks` moves the writer alone, which needs no lock; a pid, or `cgroup.procs`,
    /// would wait for a grace period: 8 ms against 0.1 ms, measured.
    pub fn join_v1(&self) -> Result<(), SysError> {
        for dir in self.v1.values() {
            write(dir, "tasks", "0")?;
        }
        Ok(())
    }

    /// Moves a process of ours into it. Takes some milliseconds.
    pub fn admit(&self, pid: u32) -> Result<(), SysError> {
        self.dirs().try_for_each(|dir| write(dir, "cgroup.procs", &pid.to_string()))
    }

    /// The processes in it.
    pub fn pids(&self) -> Vec<u32> {
        let dir = self.dirs().next();
        dir.map(|dir| v1::pids(dir).into_iter().map(i32::unsigned_abs).collect())
            .unwrap_or_default()
    }

    /// Whether this process is in it.
    pub fn holds(&self, pid: u32) -> bool {
        self.pids().contains(&pid)
    }

    /// Whether any process is in it. A group that is gone holds none.
    pub fn is_populated(&self) -> bool {
        if let Some(dir) = &self.unified {
            return v2::is_populated(dir);
        }
        self.v1.values().any(|dir| !v1::pids(dir).is_empty())
    }

    /// Sends SIGKILL to everything in it, forks that race with us included.
    pub fn kill(&self) -> Result<(), SysError> {
        match &self.unified {
            Some(dir) if dir.join("cgroup.kill").exists() => write(dir, "cgroup.kill", "1"),
            _ => {
                for dir in self.dirs() {
                    v1::kill_all(dir);
                }
                Ok(())
            }
        }
    }

    /// Stops everything in it where it is, soon, or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<(), SysError> {
        let Some(dir) = &self.unified else {
            let source = io::Error::from(io::ErrorKind::Unsupported);
            return Err(SysError { call: "freeze without cgroup v2".to_owned(), source });
        };
        write(dir, "cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Whether everything in it stands still.
    pub fn is_frozen(&self) -> bool {
        self.unified.as_ref().is_some_and(|dir| v2::is_frozen(dir))
    }

    /// Tells when something in it is out of memory, where that does not end everything in it anyway: version 1 kills
    /// one process. `None`: it does, or there is no limit.
    pub fn watch_memory(&self) -> Option<OwnedFd> {
        self.v1.get(&Controller::Memory).and_then(|dir| v1::watch_memory(dir).ok())
    }

    /// How many processes were killed in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let first = self.v1.get(&Controller::Memory);
        let second = self.unified.as_ref().map(|dir| read(dir, "memory.events"));
        let text = first.map(|dir| read(dir, "memory.oom_control")).or(second);
        keyed(&text.unwrap_or_default(), "oom_kill")
    }

    /// The cpu that it has used: of all that can be asked, what changes whenever anything in it does.
    pub fn cpu_usec(&self) -> u64 {
        if let Some(dir) = &self.unified {
            return keyed(&read_brief(dir, "cpu.stat"), "usage_usec");
        }
        let dir = self.v1.get(&Controller::Cpuacct);
        dir.map_or(0, |dir| number(&read_brief(dir, "cpuacct.usage")) / 1000)
    }

    /// What it has used so far. Files that are missing count as zero.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (controller, dir) in &self.v1 {
            v1::add_usage(dir, *controller, &mut usage);
        }
        if let Some(dir) = &self.unified {
            v2::add_usage(dir, &self.unified_controllers, &mut usage);
        }
        usage
    }

    /// Whether there is no hierarchy that it could be in: an ordinary user may be given none.
    pub fn is_nowhere(&self) -> bool {
        self.dirs().next().is_none()
    }

    /// Whether it exists anywhere.
    pub fn exists(&self) -> bool {
        self.dirs().any(Path::exists)
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.unified.iter().chain(self.v1.values()).map(PathBuf::as_path)
    }
}

/// A directory of version 2, to clone into.
pub fn open(dir: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_PATH;
    nix::fcntl::open(dir, flags, Mode::empty())
        .map_err(|errno| SysError::nix(format!("open {}", dir.display()), errno))
}

/// Makes the directories, all or none. One that exists already is an error, and stays as it is.
fn make<'d>(dirs: impl Iterator<Item = &'d Path>) -> Result<(), SysError> {
    let mut made: Vec<&Path> = Vec::new();
    for dir in dirs {
        match fs::create_dir(dir) {
            Ok(()) => made.push(dir),
            // Several controllers may be in one hierarchy, by one path or by links.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && made.iter().any(|ours| is_same(ours, dir)) => {}
            Err(source) => {
                made.iter().for_each(|ours| drop(fs::remove_dir(ours)));
                return Err(SysError::io("mkdir", dir, source));
            }
        }
    }
    Ok(())
}

fn is_same(one: &Path, other: &Path) -> bool {
    let [one, other] = [one, other].map(|path| fs::metadata(path).ok());
    one.zip(other).is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), SysError> {
    let path = dir.join(file);
    let call = format!("write {value:?} to");
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| SysError::io(&call, &path, source))
}

fn read(dir: &Path, file: &str) -> String {
    super::read_small(&dir.join(file)).unwrap_or_default()
}

/// The same of a file that is a number, or a few lines: by one read, where asking for its end would double the price
/// of what is read of thousands of groups.
fn read_brief(dir: &Path, file: &str) -> String {
    /// A page is the most that the kernel gives at once; what leaves so much of it was all.
    const ROOM_BYTES: usize = 1024;
    let mut page = [0_u8; 4096];
    let opened = File::open(dir.join(file));
    match opened.and_then(|mut file| io::Read::read(&mut file, &mut page)) {
        Ok(count) if count + ROOM_BYTES <= page.len() => {
            String::from_utf8_lossy(&page[..count]).into_owned()
        }
        Ok(_) => read(dir, file),
        Err(_) => String::new(),
    }
}

/// The number after `key` in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

/// So many cpus of those in a list such as `0-3,8`, as such a list.
fn choose_cpus(list: &str, wanted: Cpus) -> String {
    let mut all: Vec<u64> = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse()) {
            all.extend(first..=last);
        }
    }
    let there = all.len().max(1);
    let count = usize::try_from(wanted.count).unwrap_or(there).min(all.len());
    let start = usize::try_from(wanted.turn).unwrap_or(0) % there;
    let mut chosen: Vec<u64> = all.iter().cycle().skip(start).take(count).copied().collect();
    chosen.sort_unstable();
    chosen.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// How many cpus a list names.
fn count_cpus(list: &str) -> u64 {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('-') {
            Some((first, last)) => (number(last) + 1).saturating_sub(number(first)),
            None => 1,
        })
        .sum()
}

fn add_periods(stat: &str, usage: &mut Usage) {
    usage.periods = keyed(stat, "nr_periods");
    usage.throttled_periods = keyed(stat, "nr_throttled");
}

/// Both versions have the same files for processes.
fn add_pids(dir: &Path, usage: &mut Usage) {
    usage.pids = number(&read_brief(dir, "pids.current"));
    // Older kernels keep no peak.
    usage.pids_peak = number(&read_brief(dir, "pids.peak")).max(usage.pids);
    usage.pids_refused = keyed(&read_brief(dir, "pids.events"), "max");
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests;
