//! Version 1: one hierarchy per controller, each with files of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Applied, Controller, Limits, Usage, keyed, number, read, read_brief, write};
use crate::{SysError, process};

/// The length of a cpu period, in microseconds.
const PERIOD_USEC: u64 = 100_000;

/// What memory files say when there is no limit: the largest number of whole pages.
const MEMORY_UNLIMITED_FROM: u64 = i64::MAX as u64 / 2;

pub(super) fn apply(
    dir: &Path,
    controller: Controller,
    limits: &Limits,
) -> Result<Applied, SysError> {
    let (mechanism, read_back) = match controller {
        Controller::Memory => {
            ("cgroup v1 memory.limit_in_bytes", memory(dir, limits.memory_bytes)?)
        }
        Controller::Cpu => ("cgroup v1 cpu.cfs_quota_us", cpu(dir, limits.cpu_percent)?),
        Controller::Pids => ("cgroup v1 pids.max", pids_max(dir, limits.pids)?),
        Controller::Cpuset => ("cgroup v1 cpuset.cpus", cpuset(dir, limits)?),
        Controller::Blkio => ("cgroup v1 blkio.throttle", io(dir, limits)),
        Controller::Cpuacct => ("cgroup v1", None),
    };
    Ok(Applied { controller, mechanism: mechanism.to_owned(), read_back })
}

fn memory(dir: &Path, bytes: Option<u64>) -> Result<Option<u64>, SysError> {
    let value = bytes.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
    let set_sum = || match write(dir, "memory.memsw.limit_in_bytes", &value) {
        // A kernel that does not account for swap has no such file.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    // Memory may not exceed memory and swap together, so growing begins with the sum.
    if write(dir, "memory.limit_in_bytes", &value).is_err() {
        set_sum()?;
        write(dir, "memory.limit_in_bytes", &value)?;
    } else {
        set_sum()?;
    }
    // What is on its way between sockets is counted only where this is set. Newer kernels count it anyway, or have none.
    let _ = write(dir, "memory.kmem.tcp.limit_in_bytes", &value);
    let now = number(&read(dir, "memory.limit_in_bytes"));
    Ok((now < MEMORY_UNLIMITED_FROM).then_some(now))
}

/// A descriptor that becomes readable when the group is out of memory.
pub(super) fn watch_memory(dir: &Path) -> Result<OwnedFd, SysError> {
    let path = dir.join("memory.oom_control");
    let control = File::open(&path).map_err(|source| SysError::io("open", &path, source))?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| SysError::nix("eventfd", errno))?;
    let order = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    write(dir, "cgroup.event_control", &order)?;
    Ok(event.into())
}

/// A new group's period is [`PERIOD_USEC`], and nobody changes it.
fn cpu(dir: &Path, percent: Option<u64>) -> Result<Option<u64>, SysError> {
    let quota = percent
        .map_or_else(|| "-1".to_owned(), |percent| (percent * PERIOD_USEC / 100).to_string());
    write(dir, "cpu.cfs_quota_us", &quota)?;
    Ok(cpu_percent(dir))
}

pub(super) fn cpu_percent(dir: &Path) -> Option<u64> {
    let quota: i64 = read(dir, "cpu.cfs_quota_us").trim().parse().unwrap_or(-1);
    u64::try_from(quota).ok().map(|quota| quota * 100 / PERIOD_USEC)
}

fn pids_max(dir: &Path, pids: Option<u64>) -> Result<Option<u64>, SysError> {
    write(dir, "pids.max", &pids.map_or_else(|| "max".to_owned(), |pids| pids.to_string()))?;
    Ok(read(dir, "pids.max").trim().parse().ok())
}

/// A new directory of this hierarchy has no cpus and no memory at all, and nothing can be put into it.
pub(super) fn prepare_cpuset(dir: &Path) -> Result<(), SysError> {
    let above = dir.parent().unwrap_or(dir);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(dir, file).trim().is_empty() {
            write(dir, file, read(above, file).trim())?;
        }
    }
    Ok(())
}

fn cpuset(dir: &Path, limits: &Limits) -> Result<Option<u64>, SysError> {
    let above = dir.parent().unwrap_or(dir);
    let all = read(above, "cpuset.cpus");
    let cpus = limits.cpus.map_or_else(|| all.clone(), |cpus| super::choose_cpus(&all, cpus));
    write(dir, "cpuset.mems", read(above, "cpuset.mems").trim())?;
    write(dir, "cpuset.cpus", cpus.trim())?;
    Ok(Some(super::count_cpus(&read(dir, "cpuset.cpus"))))
}

fn io(dir: &Path, limits: &Limits) -> Option<u64> {
    let io = limits.io?;
    let device = format!("{}:{}", io.device.0, io.device.1);
    let mut kept: Vec<Option<u64>> = Vec::new();
    for file in ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"] {
        // Not every disk can be limited: what it did not take is not read back.
        let _ = write(dir, file, &format!("{device} {}", io.bytes_per_second.unwrap_or(0)));
        let now = read(dir, file);
        let line = now.lines().find_map(|line| line.strip_prefix(&device));
        kept.push(line.map(number));
    }
    kept.into_iter().max().flatten()
}

pub(super) fn add_usage(dir: &Path, controller: Controller, usage: &mut Usage) {
    match controller {
        Controller::Memory => {
            usage.memory_bytes = number(&read_brief(dir, "memory.usage_in_bytes"));
            usage.memory_peak_bytes = number(&read_brief(dir, "memory.max_usage_in_bytes"));
            usage.oom_kills = keyed(&read_brief(dir, "memory.oom_control"), "oom_kill");
            usage.memory_cache_bytes =
                keyed(&read_brief(dir, "memory.stat"), "total_inactive_file");
        }
        Controller::Cpu => {
            let stat = read_brief(dir, "cpu.stat");
            usage.throttled_usec = keyed(&stat, "throttled_time") / 1000;
            super::add_periods(&stat, usage);
        }
        Controller::Cpuacct => usage.cpu_usec = number(&read_brief(dir, "cpuacct.usage")) / 1000,
        Controller::Pids => super::add_pids(dir, usage),
        Controller::Cpuset => (),
        Controller::Blkio => {
            for line in read_brief(dir, "blkio.throttle.io_service_bytes").lines() {
                let mut words = line.split(' ');
                match (words.next(), words.next(), words.next()) {
                    (Some(_), Some("Read"), Some(count)) => usage.read_bytes += number(count),
                    (Some(_), Some("Write"), Some(count)) => usage.write_bytes += number(count),
                    _ => (),
                }
            }
        }
    }
}

pub(super) fn pids(dir: &Path) -> Vec<i32> {
    read(dir, "cgroup.procs").lines().filter_map(|line| line.parse().ok()).collect()
}

/// Signals until a look finds nobody. Bounded, since a fork bomb can outrun us: the caller looks
/// again and repeats.
pub(super) fn kill_all(dir: &Path) {
    for _ in 0..64 {
        let found: Vec<(i32, OwnedFd)> = pids(dir)
            .into_iter()
            .filter_map(|pid| Some((pid, process::open_pidfd(pid.unsigned_abs()).ok()?)))
            .collect();
        // Opened first, looked at then: what is killed is what is still there, and no other with its number.
        let there = pids(dir);
        if there.is_empty() {
            return;
        }
        for (_, pidfd) in found.iter().filter(|(pid, _)| there.contains(pid)) {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }
}
