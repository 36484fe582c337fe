//! Making the workload's process: fork into the cgroup, confine, become the program.
//!
//! Every step of the child either succeeds or is reported by name through a pipe that exec closes;
//! so the shim knows that the program runs, or which step failed and why.

mod room;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use self::room::Opened;
use crate::init;
use crate::launch::{
    CGROUPS, Confinement, Launch, OPTIONS_FD, ORDER_FD, Program, RUNSC_STAGE, STAGE, STATUS_FD,
    Stage, UNSHARE_NETWORK,
};
use crate::stdio::{self, Ours, Theirs};
use sodium_sys::error::chain;
use sodium_sys::landlock::{self, Scope};
use sodium_sys::namespace::Network;
use sodium_sys::spawn::{self, Fork, Limit};
use sodium_sys::{self as sys, SysError, mount, poll, seccomp};

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
    /// The first process of a plain process's room ends when this is closed.
    pub room: Option<OwnedFd>,
}

/// Longest report of a failure.
const FAILURE_BYTES_MAX: usize = 2048;

/// The child's ends.
struct Ends {
    stdio: Theirs,
    wrapper: Option<WrapperEnds>,
    failure: OwnedFd,
}

/// What bubblewrap is handed beside its standard descriptors.
struct WrapperEnds {
    status: OwnedFd,
    options: OwnedFd,
    /// Read by nobody but our init, inside.
    order: OwnedFd,
}

/// Starts what `launch` orders, in the network that was made for it, if it is to have one of its own and we may make
/// one. Returns in the shim only.
pub(super) fn start(launch: &Launch, made: Option<Network>) -> Result<Child, SysError> {
    let network =
        if launch.wants_network() { made.map_or_else(Network::make, Ok).map(Some)? } else { None };
    let network = network.as_ref();
    if let (Confinement::Gvisor { .. }, Some(network)) = (&launch.confinement, network) {
        // Ourselves, too: we keep it, and whoever is to reach runsc enters where we are.
        network.enter()?;
    }
    let (child, ends) = connect(launch, network.is_some())?;
    let unified = launch.group.open_unified()?;
    let unified = unified.as_ref().map(AsFd::as_fd);
    let parent = std::process::id();
    let room = match &launch.confinement {
        Confinement::Itself { room: Some(room), .. } => {
            Some(room::open(room, launch, network, &ends.failure, unified)?)
        }
        Confinement::Bubblewrap { .. }
        | Confinement::Gvisor { .. }
        | Confinement::Itself { room: None, .. } => None,
    };
    let fork = || spawn::fork_into(unified);
    let forked = match &room {
        Some(room) => room.bear(fork)?,
        None => fork()?,
    };
    match forked {
        Fork::Parent { pid } => Ok(Child { pid, room: room.map(|room| room.ready), ..child }),
        Fork::Child => {
            let failed = become_workload(launch, &ends, room.as_ref(), network, parent);
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

/// What a child reported about its failure: the stage and the reason. It becomes part of a status, of a frame and of
/// a file, and may quote as much of a tenant's as a word may have. It is written at once, so it is read at once: whoever
/// wrote it may be a tenant already, and stand still before it ends.
pub(super) fn read_failure(pipe: OwnedFd) -> Option<(String, String)> {
    let mut text = [0; FAILURE_BYTES_MAX];
    let count = poll::read_some(pipe.as_fd(), &mut text).ok()??;
    let text = String::from_utf8_lossy(&text[..count]);
    let (stage, message) = text.split_once('\n')?;
    Some((stage.to_owned(), message.to_owned()))
}

fn connect(launch: &Launch, has_network: bool) -> Result<(Child, Ends), SysError> {
    let (failure_end, failure) = poll::pipe()?;
    let (status_end, wrapper) = match &launch.confinement {
        Confinement::Bubblewrap { options, inside, .. } => {
            // It begins in its network already.
            let options = options.iter().filter(|one| !has_network || *one != UNSHARE_NETWORK);
            let (read, write) = wrap(options, inside, &failure)?;
            (Some(read), Some(write))
        }
        Confinement::Gvisor { .. } | Confinement::Itself { .. } => (None, None),
    };
    let own_terminal = launch.own_terminal();
    let (ours, stdio) = stdio::open(own_terminal)?;
    let terminal = own_terminal.map(|_| stdio.hold()).transpose()?;
    let child = Child {
        pid: 0,
        stdio: ours,
        failure: failure_end,
        status: status_end,
        terminal,
        room: None,
    };
    // Out of the way of the numbers that place_descriptors() gives away.
    let failure = spawn::move_high(failure)?;
    Ok((child, Ends { stdio, wrapper, failure }))
}

/// Our end of bubblewrap's report, and what it is handed. Our init is sent the other end of `failure` as well: the
/// pipe is closed by the last exec there is, which is that of the workload's program.
fn wrap<'o>(
    options: impl Iterator<Item = &'o String>,
    inside: &Program,
    failure: &OwnedFd,
) -> Result<(OwnedFd, WrapperEnds), SysError> {
    let (status_end, status) = poll::pipe()?;
    poll::set_nonblocking(status_end.as_fd())?;
    let options: String = options.flat_map(|option| [option.as_str(), "\0"]).collect();
    let options = sys::memory_file(options.as_bytes())?;
    let order = init::hand_over(inside, failure)?;
    let ends = WrapperEnds {
        status: spawn::move_high(status)?,
        options: spawn::move_high(options)?,
        order: spawn::move_high(order)?,
    };
    Ok((status_end, ends))
}

/// The step that failed, and why.
pub(super) type Failed = (&'static str, SysError);

/// Runs in the child. Returns only to say which step failed.
fn become_workload(
    launch: &Launch,
    ends: &Ends,
    room: Option<&Opened>,
    network: Option<&Network>,
    parent: u32,
) -> Failed {
    let steps = || -> Result<(), Failed> {
        launch.group.join_v1().map_err(|error| ("cgroup", error))?;
        spawn::reset_signals().map_err(|error| ("signals", error))?;
        spawn::new_session().map_err(|error| ("session", error))?;
        set_limits(launch.open_files_max).map_err(|error| ("limits", error))?;
        place_descriptors(launch, ends).map_err(|error| ("descriptors", error))?;
        if launch.own_terminal().is_some() {
            ends.stdio.control().map_err(|error| ("terminal", error))?;
        }
        if let Confinement::Bubblewrap { stage: Some(stage), .. } = &launch.confinement {
            set_stage(stage).map_err(|error| ("mounts", error))?;
        }
        match room {
            Some(room) => room.enter(network, &ends.failure),
            None => network.map_or(Ok(()), Network::enter),
        }
        .map_err(|error| ("namespaces", error))?;
        std::env::set_current_dir(&launch.work_dir)
            .map_err(|source| ("workspace", SysError::io("chdir", &launch.work_dir, source)))?;
        if let Some((uid, gid)) = launch.user {
            spawn::become_user(uid, gid).map_err(|error| ("user", error))?;
        }
        // After the change of user, which clears it.
        match room {
            // The shim is in another pid namespace.
            Some(_) => spawn::die_with_parent_behind(ends.failure.as_fd()),
            None => spawn::die_with_parent(parent),
        }
        .map_err(|error| ("parent", error))?;
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
        Confinement::Gvisor { stage, binds, whole_proc, hidden, cgroups, .. } => {
            mount_for_runsc(stage.as_deref(), binds, whole_proc, hidden.as_deref())
                .and_then(|()| match cgroups {
                    Some(tree) => mount::bind_read_only(tree, Path::new(CGROUPS)),
                    None => Ok(()),
                })
                .map_err(|error| ("mounts", error))
        }
        Confinement::Itself { read_only, writable, without_tcp, room } => {
            let scope = scope_of(room.as_ref().map(|room| room.shares_network), *without_tcp);
            confine_itself(read_only, writable, scope)
        }
    }
}

/// Mounts what runsc and its processes are to find, and takes away what is none of their business.
fn mount_for_runsc(
    stage: Option<&Path>,
    binds: &[(PathBuf, PathBuf)],
    whole_proc: &Path,
    hidden: Option<&Path>,
) -> Result<(), SysError> {
    mount::private_namespace()?;
    // First: the others are mounted in there.
    if let Some(made) = stage {
        mount::bind(made, Path::new(RUNSC_STAGE))?;
    }
    mount::proc_at(whole_proc)?;
    for (from, at) in binds {
        mount::bind(from, at)?;
    }
    match hidden.filter(|dir| mount::is_at(dir)) {
        Some(dir) => mount::unmount(dir, true),
        None => Ok(()),
    }
}

/// Mounts what a runtime needs of ours where it may walk, whoever it is.
fn set_stage(stage: &Stage) -> Result<(), SysError> {
    mount::private_namespace()?;
    mount::stage(Path::new(STAGE))?;
    for (from, name) in &stage.binds {
        mount::bind_new(from, &Path::new(STAGE).join(name))?;
    }
    // What the host mounts below any of it later is not shown to a sandbox, let alone writable.
    mount::cut_off(Path::new(STAGE))?;
    stage.hidden.as_ref().map_or(Ok(()), |dir| mount::forget(dir))
}

/// What Landlock takes over from the namespaces that are not there. Beside a namespace it would only be in the way of
/// programs that are run in one sandbox to signal each other.
pub(super) fn scope_of(room_shares_network: Option<bool>, without_tcp: bool) -> Scope {
    Scope {
        abstract_sockets: room_shares_network.unwrap_or(true),
        signals: room_shares_network.is_none(),
        tcp: without_tcp,
    }
}

/// In a network that is shared with others, their sockets without a path are nobody's business. Where the kernel
/// cannot keep them away, they are reachable.
pub(super) fn leave_strangers(shares_network: bool) -> Result<(), SysError> {
    if !shares_network {
        return Ok(());
    }
    landlock::restrict_scope(Scope { abstract_sockets: true, ..Scope::default() }).map(drop)
}

/// What a process is kept in by that confines itself.
pub(super) fn confine_itself(
    read_only: &[PathBuf],
    writable: &[PathBuf],
    scope: Scope,
) -> Result<(), Failed> {
    spawn::no_new_privileges().map_err(|error| ("privileges", error))?;
    landlock::restrict(read_only, writable, scope).map_err(|error| ("landlock", error))?;
    seccomp::load_filter().map_err(|error| ("seccomp", error))
}

pub(super) fn set_limits(open_files_max: Option<u64>) -> Result<(), SysError> {
    // Too little for a file, and the one number that keeps a core from a program of the host's as well: where
    // core_pattern names a pipe, the kernel asks for no other, and starts it as root.
    spawn::limit(Limit::CoreBytes, 1)?;
    open_files_max.map_or(Ok(()), |max| spawn::limit(Limit::OpenFiles, max))
}

/// Everything from 3 on is closed by the exec, but for what bubblewrap is handed.
fn place_descriptors(launch: &Launch, ends: &Ends) -> Result<(), SysError> {
    ends.stdio.place()?;
    if let Confinement::Bubblewrap { inherited, .. } = &launch.confinement {
        let ends = ends.wrapper.as_ref().expect("connect() makes them for bubblewrap");
        for (fd, number) in
            [(&ends.status, STATUS_FD), (&ends.options, OPTIONS_FD), (&ends.order, ORDER_FD)]
        {
            spawn::place_fd(fd.as_fd(), number)?;
        }
        for (number, path) in inherited {
            let file = File::open(path).map_err(|source| SysError::io("open", path, source))?;
            spawn::place_fd(spawn::move_high(file.into())?.as_fd(), *number)?;
        }
    }
    Ok(())
}
