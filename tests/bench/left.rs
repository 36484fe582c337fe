//! What a daemon leaves on its host once everything it ran is deleted and it was told to end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sodium_runtime::supervise::host::cgroups_of;

use crate::desk::Desk;

/// A shim is let go of after the end of its sandbox was told, and a daemon ends within five seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pid and when it began, since a pid alone may be another's soon.
pub type Process = (u32, u64);

/// The daemon, what it started, and what that started: by parents, and by cgroups, which outlive them.
pub fn processes(desk: &Desk) -> BTreeSet<Process> {
    let mut found: BTreeSet<u32> = [desk.pid()].into();
    found.extend(desk.shim_pids());
    let all: Vec<(u32, u32, u64)> = pids()
        .filter_map(|pid| Some((pid, parent_and_start(pid)?)))
        .map(|(pid, (parent, start))| (pid, parent, start))
        .collect();
    loop {
        let before = found.len();
        let children = all.iter().filter(|(_, parent, _)| found.contains(parent));
        let children: Vec<u32> = children.map(|(pid, ..)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            break;
        }
    }
    let name = cgroup_name(desk);
    let own = |pid: u32| found.contains(&pid) || is_in_cgroup(pid, &name);
    all.iter().filter(|(pid, ..)| own(*pid)).map(|(pid, _, start)| (*pid, *start)).collect()
}

/// Ends the daemon as an init system would, and lists everything that should be gone and is not.
pub async fn look(desk: &mut Desk, before: &BTreeSet<Process>) -> Vec<String> {
    let run_dirs = desk.run.path().join("i");
    let groups = cgroups_of(desk.run.path());
    until(|| entries(&run_dirs).is_empty() && groups.names().is_empty()).await;
    let mut left: Vec<String> =
        entries(&run_dirs).into_iter().map(|name| format!("run directory {name}")).collect();
    left.extend(groups.names().into_iter().map(|name| format!("cgroup {name}")));
    // All that ever ran was deleted with its workspace; what is stopped has never had any of these.
    for (what, path) in [("console", "state/console"), ("workspace", "sandboxes")] {
        let names = entries(&desk.path(path)).into_iter().filter(|name| !name.starts_with('.'));
        left.extend(names.map(|name| format!("{what} {name}")));
    }
    for path in ["sandboxes/.disk", "sandboxes/.mounts"] {
        let names = entries(&desk.path(path)).into_iter().filter(|name| name != ".templates");
        left.extend(names.map(|name| format!("volume {name}")));
    }
    let mut daemon = desk.daemon.take().expect("it runs");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).expect("pids are small"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
        .expect("it is ours and not reaped");
    let mut status = None;
    until(|| {
        status = daemon.try_wait().expect("it is our child");
        status.is_some()
    })
    .await;
    match status {
        Some(status) if status.success() => (),
        Some(status) => left.push(format!("the daemon ended with {status}")),
        None => {
            left.push("the daemon did not end".to_owned());
            daemon.kill().expect("it is our child");
            daemon.wait().expect("it is our child");
        }
    }
    let name = cgroup_name(desk);
    let alive = || {
        let known = |pid: u32| {
            parent_and_start(pid).is_some_and(|(_, start)| before.contains(&(pid, start)))
        };
        let stays = |pid: &u32| known(*pid) || is_in_cgroup(*pid, &name);
        pids().filter(stays).collect::<Vec<u32>>()
    };
    until(|| alive().is_empty()).await;
    left.extend(alive().into_iter().map(|pid| format!("process {pid}: {}", command_of(pid))));
    groups.remove();
    left
}

async fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroup_name(desk: &Desk) -> String {
    let group = cgroups_of(desk.run.path()).family("any").workload;
    let dir =
        group.unified.as_ref().or_else(|| group.v1.values().next()).expect("this host has cgroups");
    let above = dir.ancestors().find(|dir| dir.ends_with("any")).and_then(Path::parent);
    above.and_then(Path::file_name).unwrap().to_string_lossy().into_owned()
}

fn pids() -> impl Iterator<Item = u32> {
    entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok())
}

fn is_in_cgroup(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(name))
}

fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields[1].parse().ok()?, fields[19].parse().ok()?))
}

fn command_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.replace('\0', " ")
}
