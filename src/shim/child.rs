//! Making the workload's process: fork into the cgroup, confine, become the program.
//!
//! Every step of the child either succeeds or is reported by name through a pipe that exec closes;
//! so the shim knows that the program runs, or which step failed and why.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::error::chain;
use crate::shim::launch::{Confinement, Launch, STATUS_FD};
use crate::shim::stdio::{self, Ours, Theirs};
use crate::sys::spawn::{self, Fork, Limit};
use crate::sys::{SysError, landlock, mount, poll, seccomp};

/// The shim's ends of everything that leads to the workload.
#[derive(Debug)]
pub(super) struct Child {
    pub pid: u32,
    pub stdio: Ours,
    /// Reads to its end when the program runs, or the report of what failed.
    pub failure: OwnedFd,
    /// What bubblewrap says.
    pub status: Option<OwnedFd>,
    /// Our own hold on the terminal: without it, a workload that closes its last descriptor would
    /// leave the master hung up, and poll spinning, while the workload lives.
    pub terminal: Option<OwnedFd>,
}

/// The child's ends.
struct Ends {
    stdio: Theirs,
    status: Option<OwnedFd>,
    failure: OwnedFd,
}

/// Starts what `launch` orders. Returns in the shim only.
pub(super) fn start(launch: &Launch) -> Result<Child, SysError> {
    let (child, ends) = connect(launch)?;
    let unified = launch.group.open_unified()?;
    let parent = std::process::id();
    match spawn::fork_into(unified.as_ref().map(AsFd::as_fd))? {
        Fork::Parent { pid } => Ok(Child { pid, ..child }),
        Fork::Child => {
            let failed = become_workload(launch, &ends, parent);
            give_up(ends.failure, failed)
        }
    }
}

/// In a child: says which step failed, and ends.
pub(super) fn give_up(report: OwnedFd, (stage, error): Failed) -> ! {
    let text = format!("{stage}\n{}", chain(&error));
    // Nobody is left to be told if this fails; the shim then sees a bare end.
    let _ = File::from(report).write_all(text.as_bytes());
    spawn::exit_now(127)
}

/// What a child reported about its failure: the stage and the reason.
pub(super) fn read_failure(pipe: OwnedFd) -> Option<(String, String)> {
    let mut text = String::new();
    File::from(pipe).read_to_string(&mut text).ok()?;
    let (stage, message) = text.split_once('\n')?;
    Some((stage.to_owned(), message.to_owned()))
}

fn connect(launch: &Launch) -> Result<(Child, Ends), SysError> {
    let (failure_end, failure) = poll::pipe()?;
    let (status_end, status) = match launch.confinement {
        Confinement::Bubblewrap { .. } => {
            poll::pipe().map(|(read, write)| (Some(read), Some(write)))?
        }
        Confinement::Gvisor { .. } | Confinement::Itself { .. } => (None, None),
    };
    status_end.as_ref().map_or(Ok(()), |fd| poll::set_nonblocking(fd.as_fd()))?;
    let own_terminal = launch.own_terminal();
    let (ours, stdio) = stdio::open(own_terminal)?;
    let terminal = own_terminal.map(|_| stdio.hold()).transpose()?;
    let child = Child { pid: 0, stdio: ours, failure: failure_end, status: status_end, terminal };
    // Out of the way of the numbers that place_descriptors() gives away.
    let status = status.map(spawn::move_high).transpose()?;
    let failure = spawn::move_high(failure)?;
    Ok((child, Ends { stdio, status, failure }))
}

/// The step that failed, and why.
pub(super) type Failed = (&'static str, SysError);

/// Runs in the child. Returns only to say which step failed.
fn become_workload(launch: &Launch, ends: &Ends, parent: u32) -> Failed {
    let steps = || -> Result<(), Failed> {
        launch.group.join_v1().map_err(|error| ("cgroup", error))?;
        spawn::reset_signals().map_err(|error| ("signals", error))?;
        spawn::new_session().map_err(|error| ("session", error))?;
        if launch.own_terminal().is_some() {
            ends.stdio.control().map_err(|error| ("terminal", error))?;
        }
        set_limits(launch.open_files_max).map_err(|error| ("limits", error))?;
        place_descriptors(launch, ends).map_err(|error| ("descriptors", error))?;
        std::env::set_current_dir(&launch.work_dir)
            .map_err(|source| ("workspace", SysError::io("chdir", &launch.work_dir, source)))?;
        if let Some((uid, gid)) = launch.user {
            spawn::become_user(uid, gid).map_err(|error| ("user", error))?;
        }
        // After the change of user, which clears it.
        spawn::die_with_parent(parent).map_err(|error| ("parent", error))?;
        confine(&launch.confinement)
    };
    match steps() {
        Err(failed) => failed,
        Ok(()) => ("exec", spawn::exec(&launch.program, &launch.args, &launch.env)),
    }
}

/// The last steps, which differ.
fn confine(confinement: &Confinement) -> Result<(), Failed> {
    match confinement {
        Confinement::Bubblewrap { .. } => Ok(()),
        Confinement::Gvisor { binds, whole_proc, hidden, cpus, .. } => {
            mount::private_namespace().map_err(|error| ("mounts", error))?;
            mount::proc_at(whole_proc).map_err(|error| ("mounts", error))?;
            for (from, at) in binds {
                mount::bind(from, at).map_err(|error| ("mounts", error))?;
            }
            if let Some(dir) = hidden.as_ref().filter(|dir| mount::is_at(dir)) {
                mount::unmount(dir, true).map_err(|error| ("mounts", error))?;
            }
            let narrowed = cpus.map_or(Ok(()), spawn::narrow_to_cpus);
            narrowed.map_err(|error| ("cpus", error))
        }
        Confinement::Itself { read_only, writable } => confine_itself(read_only, writable),
    }
}

/// What a process without namespaces is kept in by.
pub(super) fn confine_itself(read_only: &[PathBuf], writable: &[PathBuf]) -> Result<(), Failed> {
    spawn::no_new_privileges().map_err(|error| ("privileges", error))?;
    landlock::restrict(read_only, writable).map_err(|error| ("landlock", error))?;
    seccomp::load_filter().map_err(|error| ("seccomp", error))
}

pub(super) fn set_limits(open_files_max: Option<u64>) -> Result<(), SysError> {
    spawn::limit(Limit::CoreBytes, 0)?;
    open_files_max.map_or(Ok(()), |max| spawn::limit(Limit::OpenFiles, max))
}

/// Everything from 3 on is closed by the exec, but for what bubblewrap is handed.
fn place_descriptors(launch: &Launch, ends: &Ends) -> Result<(), SysError> {
    ends.stdio.place()?;
    if let Confinement::Bubblewrap { inherited } = &launch.confinement {
        let status = ends.status.as_ref().expect("connect() opens one for bubblewrap");
        spawn::place_fd(status.as_fd(), STATUS_FD)?;
        for (number, path) in inherited {
            let file = File::open(path).map_err(|source| SysError::io("open", path, source))?;
            spawn::place_fd(spawn::move_high(file.into())?.as_fd(), *number)?;
        }
    }
    Ok(())
}
