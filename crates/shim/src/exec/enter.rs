//! The program's process: into the cgroup and the namespaces of the workload, and nothing kept of what
//! it took to get there.
//!
//! A pid namespace is entered only by children, so there are two forks: the first process enters and
//! forks the second beside itself, which makes that a child of ours, and ends.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::order::{Confined, ExecOrder, Way};
use crate::child::{self, Failed};
use crate::stdio::{self, Ours, Theirs};
use sodium_sys::namespace::{self, Entrance};
use sodium_sys::spawn::{self, Fork};
use sodium_sys::{SysError, path, poll, process, seccomp};

/// A program that is on its way.
#[derive(Debug)]
pub(super) struct Started {
    pub stdio: Ours,
    /// Reads to its end when the program runs, or the report of what failed.
    pub failure: OwnedFd,
    /// A process that ends before the program begins, and is not it.
    pub usher: Option<u32>,
    /// The program, where it is known at once.
    pub program: Option<u32>,
    /// Our own hold on the terminal, if there is one: without it, one that nobody else has open hangs up.
    pub terminal: Option<OwnedFd>,
}

/// Starts it, inside the instance with this run directory. Returns in the parent only.
pub(super) fn start(order: &ExecOrder, run_dir: &Path) -> Result<Started, SysError> {
    let (ours, theirs) = stdio::open(order.tty)?;
    let (failure, report) = poll::pipe()?;
    let report = spawn::move_high(report)?;
    let group = match &order.way {
        Way::Namespaces { confined, .. } | Way::Beside { confined, .. } => Some(&confined.group),
        Way::Gvisor { .. } => None,
    };
    let unified = group.map(|group| group.open_unified()).transpose()?.flatten();
    let parent = std::process::id();
    match spawn::fork_into(unified.as_ref().map(AsFd::as_fd))? {
        Fork::Parent { pid } => {
            let (usher, program) = match order.way {
                Way::Namespaces { .. } | Way::Beside { room: Some(_), .. } => (Some(pid), None),
                Way::Beside { room: None, .. } | Way::Gvisor { .. } => (None, Some(pid)),
            };
            let terminal = order.tty.map(|_| theirs.hold()).transpose()?;
            Ok(Started { stdio: ours, failure, usher, program, terminal })
        }
        Fork::Child => {
            let failed = become_program(order, run_dir, &theirs, &report, parent);
            child::give_up(report, failed)
        }
    }
}

/// Runs in the child. Returns only to say which step failed.
fn become_program(
    order: &ExecOrder,
    run_dir: &Path,
    stdio: &Theirs,
    report: &OwnedFd,
    parent: u32,
) -> Failed {
    let ready = match &order.way {
        Way::Namespaces { pid, confined, shares_network } => {
            let inside = Inside { pid: *pid, own_users: true, confined, run_dir };
            inside.enter(order, stdio, report).and_then(|()| confine(*shares_network))
        }
        Way::Beside { confined, read_only, writable, without_tcp, room } => {
            let scope =
                child::scope_of(room.as_ref().map(|room| room.shares_network), *without_tcp);
            let placed = match room {
                Some(room) => {
                    let inside = Inside { pid: room.pid, own_users: false, confined, run_dir };
                    inside.enter(order, stdio, report)
                }
                None => beside(confined, order, stdio, parent),
            };
            placed.and_then(|()| child::confine_itself(read_only, writable, scope))
        }
        Way::Gvisor { .. } => session(order, stdio)
            .and_then(|()| spawn::die_with_parent(parent).map_err(|error| ("parent", error))),
    };
    match (ready, &order.way) {
        (Err(failed), _) => failed,
        (Ok(()), Way::Gvisor { program, args, .. }) => {
            ("exec", spawn::exec(program, args, &order.env))
        }
        (Ok(()), Way::Namespaces { .. } | Way::Beside { .. }) => {
            ("exec", spawn::exec_found(&order.args, &order.env))
        }
    }
}

/// Where a workload has none of its own to enter.
fn beside(
    confined: &Confined,
    order: &ExecOrder,
    stdio: &Theirs,
    parent: u32,
) -> Result<(), Failed> {
    bind(confined)?;
    become_user(confined)?;
    session(order, stdio)?;
    // After the change of user, which clears it.
    spawn::die_with_parent(parent).map_err(|error| ("parent", error))?;
    enter_dir(&order.work_dir)
}

/// Where to go.
struct Inside<'o> {
    pid: u32,
    own_users: bool,
    confined: &'o Confined,
    run_dir: &'o Path,
}

impl Inside<'_> {
    /// Comes back in the second process, inside, with nothing in hand but standard descriptors and the report.
    fn enter(&self, order: &ExecOrder, stdio: &Theirs, report: &OwnedFd) -> Result<(), Failed> {
        let failed = |error| ("namespaces", error);
        // First found, then checked: the pid could be somebody else's by now.
        let entrance = Entrance::find(self.pid, self.own_users).map_err(failed)?;
        if !is_of_instance(self.pid, self.confined, self.run_dir) {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(failed(SysError { call: format!("find process {}", self.pid), source }));
        }
        bind(self.confined)?;
        stdio.place().map_err(|error| ("descriptors", error))?;
        // What is still open when the root is left is a way back to it, whatever path leads there.
        let kept: Vec<_> = entrance.descriptors().chain([report.as_fd()]).collect();
        spawn::close_all_but(&kept).map_err(|error| ("descriptors", error))?;
        // From here on the workload can see us, and is the same user.
        namespace::hide().map_err(failed)?;
        entrance.enter_all_but_user().map_err(failed)?;
        match spawn::fork_beside().map_err(failed)? {
            Fork::Parent { .. } => spawn::exit_now(0),
            Fork::Child => (),
        }
        become_user(self.confined)?;
        entrance.enter_user().map_err(failed)?;
        // The change of user may have undone it.
        namespace::hide().map_err(failed)?;
        drop(entrance);
        enter_dir(&order.work_dir)?;
        begin_session(order, stdio)?;
        spawn::die_with_parent_behind(report.as_fd()).map_err(|error| ("parent", error))
    }
}

/// What bubblewrap does to what it starts.
fn confine(shares_network: bool) -> Result<(), Failed> {
    namespace::drop_capabilities().map_err(|error| ("privileges", error))?;
    spawn::no_new_privileges().map_err(|error| ("privileges", error))?;
    child::leave_strangers(shares_network).map_err(|error| ("landlock", error))?;
    seccomp::load_filter().map_err(|error| ("seccomp", error))
}

/// In its group; or, where there is none, below its shim, which works in the run directory.
fn is_of_instance(pid: u32, confined: &Confined, run_dir: &Path) -> bool {
    let group = &confined.group;
    group.holds(pid) || group.is_nowhere() && process::is_below_one_in(pid, run_dir)
}

/// The limits of the instance.
fn bind(confined: &Confined) -> Result<(), Failed> {
    confined.group.join_v1().map_err(|error| ("cgroup", error))?;
    child::set_limits(confined.open_files_max).map_err(|error| ("limits", error))
}

fn become_user(confined: &Confined) -> Result<(), Failed> {
    let Some((uid, gid)) = confined.user else { return Ok(()) };
    spawn::become_user(uid, gid).map_err(|error| ("user", error))
}

fn enter_dir(dir: &Path) -> Result<(), Failed> {
    path::enter_beneath_root(dir).map_err(|error| ("directory", error))
}

/// A session with these standard descriptors, and nothing else that is open after the exec.
fn session(order: &ExecOrder, stdio: &Theirs) -> Result<(), Failed> {
    stdio.place().map_err(|error| ("descriptors", error))?;
    begin_session(order, stdio)
}

/// The standard descriptors are in their places.
fn begin_session(order: &ExecOrder, stdio: &Theirs) -> Result<(), Failed> {
    spawn::reset_signals().map_err(|error| ("signals", error))?;
    spawn::new_session().map_err(|error| ("session", error))?;
    match order.tty {
        Some(_) => stdio.control().map_err(|error| ("terminal", error)),
        None => Ok(()),
    }
}
