//! What was started ahead is given to somebody: who it is from now on, and what it becomes. A file in
//! the run directory, since an environment may be large.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::child;
use crate::init::InitOrder;
use crate::launch::Launch;
use sodium_sys::graft::Tree;
use sodium_sys::process::{self, Ended};
use sodium_sys::spawn::{self, Fork};
use sodium_sys::{SysError, poll};

/// The file's name in the run directory.
pub const FILE: &str = "claim.json";
/// gVisor's file server, which has the guest's mounts.
const FILE_SERVER: &str = "runsc-gofer";

/// Everything about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// In place of the one it was started with.
    pub launch: Launch,
    pub trees: Vec<Attached>,
    pub order: InitOrder,
}

/// Files that appear in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub source: PathBuf,
    /// Where the file server has them.
    pub at: PathBuf,
    /// Who they belong to on disk, and who that is in there.
    pub ids: Vec<(u32, u32)>,
}

pub(super) fn read() -> Result<Claim, SysError> {
    let path = Path::new(FILE);
    let failed = |source| SysError::io("read", path, source);
    let bytes = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Attaches a tree. A process of its own does it, since it comes to see the guest's mounts
/// instead of ours.
pub(super) fn attach(tree: &Attached) -> Result<(), SysError> {
    let is_server =
        |pid: &u32| process::arguments(*pid).first().is_some_and(|name| name == FILE_SERVER);
    let server = process::children(std::process::id()).into_iter().find(is_server);
    let gone = || SysError {
        call: "find gVisor's file server".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let server = server.ok_or_else(gone)?;
    let (failure, report) = poll::pipe()?;
    match spawn::fork_into(None)? {
        Fork::Child => attach_in(server, tree, report),
        Fork::Parent { pid } => {
            drop(report);
            let said = child::read_failure(failure);
            let ended = process::wait_for(pid)?;
            if ended == Ended::Exited(0) {
                return Ok(());
            }
            let said = said.map_or_else(|| format!("{ended:?}"), |(_, message)| message);
            let source = std::io::Error::other(said);
            Err(SysError { call: "attach workspace".to_owned(), source })
        }
    }
}

fn attach_in(server: u32, tree: &Attached, report: OwnedFd) -> ! {
    let attached =
        Tree::open(&tree.source, &tree.ids).and_then(|opened| opened.attach_in(server, &tree.at));
    match attached {
        Ok(()) => spawn::exit_now(0),
        Err(error) => child::give_up(report, ("workspace", error)),
    }
}
