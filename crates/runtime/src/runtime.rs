//! What differs between the ways to run a sandbox, and nothing else.
//!
//! A new one implements [`Runtime`] in a folder of its own, gets a constructor in [`crate::supervise`], and has the contract
//! suite run against it. Cgroup, run directory, workspace, shim, console and every end are the same for all.
//!
//! ```text
//!   Start --prepare--> Prepared (program, arguments, who confines what, files of the run directory)
//!                        `-> the supervisor makes the rest, and orders the shim
//! ```

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::View;
use crate::storage::workspace::Place;
use crate::supervise::Supervisor;
use crate::supervise::host::Host;
use crate::supervise::ledger::Counting;
use crate::{DriverError, ExecOrder, Keep, Order, Started};
use sodium_model::{Iid, Isolation, Limits};
use sodium_shim::exec::order::{Confined, Way};
use sodium_shim::launch::Confinement;
use sodium_sys::SysError;
use sodium_sys::cgroup::Group;

/// One way to run a sandbox. What it has started goes on without its program, and is watched and ended as before;
/// whatever needs the program is refused with the reason for which there is none.
pub(crate) trait Runtime: Debug + Send + Sync {
    fn isolation(&self) -> Isolation;

    /// The program behind it, with its version; or why nothing can be started for now.
    fn version(&self) -> Result<String, String>;

    /// Why its program is not there, if it is not.
    fn missing(&self) -> Option<&str> {
        None
    }

    /// What is still being found out about it, for a moment.
    fn not_yet(&self) -> Option<String> {
        None
    }

    /// Takes over what an earlier daemon found out about it. False: nothing, or something is not as it was.
    fn recall(&self, _: &Host) -> bool {
        true
    }

    /// Finds out what has to be known before the first start. False: not within that time.
    fn find_out(&self, _: &Host, _within: Duration) -> bool {
        true
    }

    /// Whether starting one and having it idle cost much: see [`crate::Driver::is_dear`].
    fn is_dear(&self) -> bool {
        false
    }

    /// Who counts the processes of a sandbox.
    fn counting(&self) -> Counting;

    /// Where a sandbox that is started now finds its own trees.
    fn view(&self, _: &Host, _files: &Path, _tmp: Option<&Path>) -> View {
        View::inside()
    }

    /// The same of one that runs already.
    fn view_of(&self, _: &Host, _: &Iid, _files: &Path, _tmp: Option<&Path>) -> View {
        View::inside()
    }

    /// What is still to be done about a workspace.
    fn lay_out(&self, _: &Place) -> Result<(), SysError> {
        Ok(())
    }

    /// What the shim is to run, and how.
    fn prepare(&self, start: &Start<'_>) -> Result<Prepared, DriverError>;

    /// How a program gets into what runs.
    fn enter(&self, enter: Enter<'_>) -> Result<Entered, DriverError>;

    /// Whether a process of a sandbox is the one that signals are meant for.
    fn is_first(&self, pid: u32) -> bool;

    /// Whether a process is a kernel of its own between a sandbox and the host's.
    fn is_kernel(&self, _pid: u32) -> bool {
        false
    }

    /// How that kernel works here, for the ledger of walls.
    fn kernel(&self) -> String {
        String::new()
    }

    /// The cpu that the runtime itself has used within a group, in microseconds.
    fn own_cpu_usec(&self, _: &Group) -> u64 {
        0
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::default()
    }
}

/// What only some can.
#[derive(Clone, Copy, Default)]
pub(crate) struct Capabilities<'r> {
    pub checkpoint: Option<&'r dyn Checkpoint>,
    pub warm: Option<&'r dyn WarmPool>,
}

/// The memory of a sandbox on disk, and back.
pub(crate) trait Checkpoint {
    /// Takes one, and says how many bytes that is. Refused, with the reason, is what could not be gone on from.
    fn take(&self, host: &Host, iid: &Iid, order: &Keep<'_>) -> Result<u64, DriverError>;

    /// Where the memory is that a new instance is to go on from; with the workspace put back that belongs to it, once
    /// for each request.
    fn restore(&self, host: &Host, order: &Order<'_>) -> Result<Option<PathBuf>, DriverError>;

    /// Lets a sandbox go on that stands still since one was taken; every other one goes on already.
    fn go_on(&self, host: &Host, iid: &Iid) -> Result<(), DriverError>;

    fn stands_still(&self, host: &Host, iid: &Iid) -> bool;
}

/// Sandboxes that are started ahead and wait for whom they will be.
pub(crate) trait WarmPool {
    fn start_ahead(&self, by: &Supervisor, image: &str, limits: &Limits)
    -> Result<(), DriverError>;

    /// How many wait for sandboxes of this image.
    fn count(&self, image: &str) -> usize;

    /// Gives one that waits to this order, if there is one that can obey every word of it.
    fn claim(&self, by: &Supervisor, order: &Order<'_>) -> Option<Started>;

    /// All that wait. Nobody is given any of them after that.
    fn take_all(&self) -> Vec<Iid>;
}

/// One start, as a runtime is told of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    pub host: &'a Host,
    pub order: &'a Order<'a>,
    /// Its own files. `None`: it waits for whom it will be.
    pub place: Option<&'a Place>,
    /// Whether there is, or will be, a directory to be its /tmp.
    pub has_tmp: bool,
    /// The memory to go on from.
    pub image: Option<&'a Path>,
    /// Of the workload, whatever confines it.
    pub env: &'a BTreeMap<String, String>,
}

impl<'a> Start<'a> {
    /// Only those can do without that can wait.
    pub(crate) fn own_files(&self) -> Result<&'a Place, DriverError> {
        self.place.ok_or_else(|| DriverError::Refused("it has no workspace".to_owned()))
    }
}

/// What the shim is to run.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub program: String,
    pub args: Vec<String>,
    pub confinement: Confinement,
    pub role: Role,
    /// What the program is to find in the run directory: name and text.
    pub files: Vec<(&'static str, String)>,
}

/// What the program of a [`Prepared`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The workload: it has its user, its environment, its directory and its limits from the first.
    Workload,
    /// It makes the sandbox as the sandbox's user, and is told nothing of a tenant's outside.
    Wrapper,
    /// The same as root, with ids of the sandbox's that it takes itself.
    Maker,
}

/// One program that is to be run inside.
pub(crate) struct Enter<'a> {
    pub host: &'a Host,
    pub iid: &'a Iid,
    /// The process that runs.
    pub pid: u32,
    pub order: &'a ExecOrder<'a>,
    pub view: &'a View,
    pub env: BTreeMap<String, String>,
    pub work_dir: &'a Path,
    pub confined: Confined,
    /// Names of files that are its own begin so.
    pub stem: &'a Path,
}

/// How it is done, and the environment of whoever does it.
pub(crate) struct Entered {
    pub way: Way,
    pub env: BTreeMap<String, String>,
}
