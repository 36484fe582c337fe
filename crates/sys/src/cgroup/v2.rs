//! Version 2: one hierarchy for everything.

use std::path::Path;

use super::{Applied, Controller, Limits, Usage, keyed, number, read, read_brief, write};
use crate::SysError;

/// The length of a cpu period, in microseconds.
const PERIOD_USEC: u64 = 100_000;

/// Which controllers were handed down to the groups in `dir`.
pub(super) fn governed(dir: &Path) -> Vec<Controller> {
    let enabled = read(dir, "cgroup.subtree_control");
    let arrived = |controller: &Controller| {
        controller.v2_name().is_some_and(|name| enabled.split_whitespace().any(|word| word == name))
    };
    Controller::ALL.into_iter().filter(arrived).collect()
}

/// Lets these govern the groups that will be in `dir`, too, in which no process may be itself.
pub(super) fn hand_down(dir: &Path, controllers: &[Controller]) -> Result<(), SysError> {
    let names = controllers.iter().filter_map(|controller| controller.v2_name());
    let all: Vec<String> = names.map(|name| format!("+{name}")).collect();
    if all.is_empty() { Ok(()) } else { write(dir, "cgroup.subtree_control", &all.join(" ")) }
}

pub(super) fn apply(
    dir: &Path,
    controller: Controller,
    limits: &Limits,
) -> Result<Applied, SysError> {
    let (mechanism, read_back) = match controller {
        Controller::Memory => ("cgroup v2 memory.max", memory(dir, limits.memory_bytes)?),
        Controller::Cpu => ("cgroup v2 cpu.max", cpu(dir, limits.cpu_percent)?),
        Controller::Pids => {
            write(dir, "pids.max", &or_max(limits.pids))?;
            ("cgroup v2 pids.max", read(dir, "pids.max").trim().parse().ok())
        }
        Controller::Cpuset => ("cgroup v2 cpuset.cpus", cpuset(dir, limits)?),
        Controller::Blkio => ("cgroup v2 io.max", io(dir, limits)),
        Controller::Cpuacct => ("cgroup v2", None),
    };
    Ok(Applied { controller, mechanism: mechanism.to_owned(), read_back })
}

fn memory(dir: &Path, bytes: Option<u64>) -> Result<Option<u64>, SysError> {
    write(dir, "memory.max", &or_max(bytes))?;
    if dir.join("memory.swap.max").exists() {
        write(dir, "memory.swap.max", if bytes.is_some() { "0" } else { "max" })?;
    }
    // One process out of memory takes the whole sandbox: a half-dead one helps nobody.
    if dir.join("memory.oom.group").exists() {
        write(dir, "memory.oom.group", "1")?;
    }
    Ok(read(dir, "memory.max").trim().parse().ok())
}

fn cpu(dir: &Path, percent: Option<u64>) -> Result<Option<u64>, SysError> {
    let quota = or_max(percent.map(|percent| percent * PERIOD_USEC / 100));
    write(dir, "cpu.max", &format!("{quota} {PERIOD_USEC}"))?;
    Ok(cpu_percent(dir))
}

pub(super) fn cpu_percent(dir: &Path) -> Option<u64> {
    let now = read(dir, "cpu.max");
    let quota = now.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    quota.map(|quota| quota * 100 / PERIOD_USEC)
}

fn cpuset(dir: &Path, limits: &Limits) -> Result<Option<u64>, SysError> {
    let all = read(dir.parent().unwrap_or(dir), "cpuset.cpus.effective");
    // Nothing written is everything.
    let cpus = limits.cpus.map_or(String::new(), |cpus| super::choose_cpus(&all, cpus));
    write(dir, "cpuset.cpus", &format!("{cpus}\n"))?;
    Ok(Some(super::count_cpus(&read(dir, "cpuset.cpus.effective"))))
}

fn io(dir: &Path, limits: &Limits) -> Option<u64> {
    let io = limits.io?;
    let (device, bytes) = (format!("{}:{}", io.device.0, io.device.1), or_max(io.bytes_per_second));
    // Not every disk can be limited: what it did not take is not read back.
    let _ = write(dir, "io.max", &format!("{device} rbps={bytes} wbps={bytes}"));
    let now = read(dir, "io.max");
    let line = now.lines().find_map(|line| line.strip_prefix(&format!("{device} ")));
    let value = |key: &str| {
        let words = line?.split(' ');
        words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key)
    };
    let kept = ["rbps", "wbps"].map(|key| value(key).and_then(|(_, bytes)| bytes.parse().ok()));
    kept.into_iter().max().flatten()
}

fn or_max(value: Option<u64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

pub(super) fn is_populated(dir: &Path) -> bool {
    keyed(&read(dir, "cgroup.events"), "populated") == 1
}

pub(super) fn is_frozen(dir: &Path) -> bool {
    keyed(&read(dir, "cgroup.events"), "frozen") == 1
}

pub(super) fn add_usage(dir: &Path, controllers: &[Controller], usage: &mut Usage) {
    let cpu = read_brief(dir, "cpu.stat");
    usage.cpu_usec = keyed(&cpu, "usage_usec");
    for controller in controllers {
        match controller {
            Controller::Memory => {
                usage.memory_bytes = number(&read_brief(dir, "memory.current"));
                usage.memory_peak_bytes = number(&read_brief(dir, "memory.peak"));
                usage.oom_kills = keyed(&read_brief(dir, "memory.events"), "oom_kill");
                usage.memory_cache_bytes = keyed(&read_brief(dir, "memory.stat"), "inactive_file");
            }
            Controller::Cpu => {
                usage.throttled_usec = keyed(&cpu, "throttled_usec");
                super::add_periods(&cpu, usage);
            }
            Controller::Pids => super::add_pids(dir, usage),
            Controller::Blkio => {
                for word in read_brief(dir, "io.stat").split_whitespace() {
                    match word.split_once('=') {
                        Some(("rbytes", count)) => usage.read_bytes += number(count),
                        Some(("wbytes", count)) => usage.write_bytes += number(count),
                        _ => (),
                    }
                }
            }
            Controller::Cpuacct | Controller::Cpuset => (),
        }
    }
}
