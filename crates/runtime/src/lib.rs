//! Ways to run a sandbox: gVisor, bubblewrap, or a plain process.
//!
//! Drivers are synchronous and hold no policy. They are asked one thing at a time about one
//! instance and say what happened; when, and whether to try again, is not theirs. The contract that
//! all of them keep is a test, run against each.
//!
//! ```text
//!   Order --runtime (gvisor | bubblewrap | process)--> Launch --supervise--> cgroup, run directory, shim
//!             `-- storage: workspace, volume                     <-- observe, stop, adjust, clean up
//! ```
//!
//! What differs between them is a `Runtime`, each whole in its file or folder; what is the same for all is
//! [`supervise`], and where their files lie is [`storage`].

pub mod bubblewrap;
#[cfg(feature = "testing")]
pub mod fake;
pub mod gvisor;
pub mod process;
pub mod rootfs;
mod runtime;
pub mod storage;
pub mod supervise;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use uuid::Uuid;

use sodium_model::{
    Iid, Isolation, LimitStatus, Limits, Network, Observed, Owner, SandboxName, Spec, WallStatus,
};
use sodium_shim::client::ClientError;
use sodium_sys::SysError;

pub use sodium_sys::cgroup::Usage;
pub use sodium_sys::disk::Space;

/// What every driver can do.
pub trait Driver: Send + Sync {
    /// What it is.
    fn isolation(&self) -> Isolation;

    /// The program behind it, with its version; or why nothing can be started for now.
    fn runtime(&self) -> Result<String, String>;

    /// Why that is not known yet, for a moment.
    fn not_yet(&self) -> Option<String> {
        None
    }

    /// Whether starting one and having it idle take so much of the host that few start at once, and idle ones are
    /// worth being frozen.
    fn is_dear(&self) -> bool {
        false
    }

    /// Whether some can be started ahead, to wait for whom they will be.
    fn can_wait(&self) -> bool {
        false
    }

    /// Limits that it cannot keep on this host, and why.
    fn unenforced(&self) -> Vec<(&'static str, String)>;

    /// Walls of this isolation that cannot be put up on this host, known before any start.
    fn missing_walls(&self, _: Behind) -> Vec<WallStatus> {
        Vec::new()
    }

    /// What the kernel says of the walls around the process that runs. Nothing, if that is gone or cannot be
    /// looked at.
    fn walls(&self, _pid: u32, _: Behind) -> Vec<WallStatus> {
        Vec::new()
    }

    /// Looks at the host. Never answers from memory.
    fn observe(&self, iid: &Iid) -> Result<Observed, DriverError>;

    /// Starts an instance of which nothing exists. On failure nothing of it runs.
    fn start(&self, order: &Order<'_>) -> Result<Started, DriverError>;

    /// Asks an instance to end, or ends it. Asking again is harmless.
    fn stop(&self, iid: &Iid, how: &StopOrder<'_>) -> Result<(), DriverError>;

    /// Applies new limits to a running instance, and says what the kernel made of them.
    fn adjust(&self, iid: &Iid, order: &Adjust<'_>) -> Result<Vec<LimitStatus>, DriverError>;

    /// Whether [`Driver::freeze`] works on this host.
    fn can_freeze(&self) -> bool;

    /// Has the kernel stop all processes of an instance where they are, or go on. What is frozen can
    /// be killed, and a shim that is asked to stop it lets it go on first.
    fn freeze(&self, iid: &Iid, frozen: bool) -> Result<(), DriverError>;

    /// Keeps the memory of what runs in a directory of its own, whole or not at all, and says how many
    /// bytes that took. Refused, with the reason, is what could not be gone on from.
    fn checkpoint(&self, iid: &Iid, order: &Keep<'_>) -> Result<u64, DriverError>;

    /// Kills everything of an instance whose shim is gone.
    fn kill_orphan(&self, iid: &Iid) -> Result<(), DriverError>;

    /// Kills a shim that does not answer, and all it watched.
    fn kill_shim(&self, iid: &Iid) -> Result<(), DriverError>;

    /// Releases the shim and removes all traces. Repeating it is harmless.
    fn clean_up(&self, iid: &Iid) -> Result<(), DriverError>;

    /// Starts something ahead that sandboxes of an image may be given. Where nothing can wait: refused.
    fn warm_up(&self, image: &str, _: &Limits) -> Result<(), DriverError> {
        Err(DriverError::Refused(format!("nothing can be started ahead for {image}")))
    }

    /// How many wait for sandboxes of an image.
    fn warm(&self, _: &str) -> usize {
        0
    }

    /// Ends everything that waits.
    fn discard_all(&self) {}

    /// Ends what an earlier daemon has started ahead and nobody was given.
    fn discard(&self, _: &Iid) {}

    /// What an instance has used. Zeros when it is not there.
    fn usage(&self, iid: &Iid) -> Usage;

    /// Runs a program inside what runs. It ends with the connection that comes back, over which
    /// [`sodium_shim::protocol::Told`] is told.
    fn exec(&self, iid: &Iid, order: &ExecOrder<'_>) -> Result<UnixStream, DriverError>;

    /// The cpu that the workload itself has used, whatever runs it aside.
    fn workload_cpu_usec(&self, iid: &Iid) -> u64;

    /// Opens a connection to follow an instance on. `None` where there is nothing to connect to.
    fn connect(&self, iid: &Iid) -> Option<UnixStream>;
}

/// Everything about one start.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub iid: &'a Iid,
    pub name: &'a SandboxName,
    pub uid: Uuid,
    pub generation: u64,
    pub epoch: u64,
    pub spec: &'a Spec,
    pub host_uid: u32,
    /// Laid into a workspace that is new: path and content.
    pub image_files: &'a std::collections::BTreeMap<String, String>,
    /// Whose retained workspaces of this name it may take back. `None`: nobody's.
    pub take_back: Option<&'a Owner>,
    /// The checkpoint to go on from, instead of running the command.
    pub restore: Option<Restore<'a>>,
}

/// A checkpoint to go on from.
#[derive(Debug, Clone, Copy)]
pub struct Restore<'a> {
    /// The name of its directory.
    pub dir: &'a str,
    /// Whether the workspace is to be as it was, too.
    pub has_workspace: bool,
    /// The request for it: the workspace that is there is put aside once for each.
    pub request: u64,
}

/// A checkpoint to be taken.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    pub uid: Uuid,
    pub host_uid: u32,
    pub spec: &'a Spec,
    /// The name of the directory.
    pub dir: &'a str,
    pub with_workspace: bool,
    /// Whether the sandbox goes on afterwards; else it stands still, to be ended.
    pub and_go_on: bool,
}

/// Everything about a program to run inside.
#[derive(Debug, Clone)]
pub struct ExecOrder<'a> {
    pub name: &'a SandboxName,
    pub uid: Uuid,
    pub spec: &'a Spec,
    pub host_uid: u32,
    pub command: &'a [String],
    /// Beside the sandbox's own.
    pub env: &'a std::collections::BTreeMap<String, String>,
    /// `None`: where the workload itself began.
    pub work_dir: Option<&'a str>,
    /// Columns and rows.
    pub tty: Option<(u16, u16)>,
}

/// What the walls of a sandbox depend on, beside its isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// The user that it is on the host, where the daemon may choose.
    pub host_uid: u32,
    pub network: Network,
}

/// Limits for what runs.
#[derive(Debug, Clone, Copy)]
pub struct Adjust<'a> {
    pub uid: Uuid,
    pub host_uid: u32,
    pub limits: &'a Limits,
}

/// What a start came to.
#[derive(Debug)]
pub struct Started {
    /// Follows the instance from its first moment.
    pub link: Option<UnixStream>,
    pub limits: Vec<LimitStatus>,
}

/// How to end an instance.
#[derive(Debug, Clone, Copy)]
pub struct StopOrder<'a> {
    pub signal: &'a str,
    pub grace_ms: u64,
    /// Without grace.
    pub force: bool,
    pub reason: &'a str,
}

/// Why a driver could not.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The runtime's own program is not on this host.
    #[error("{program} is not installed; hint: {hint}")]
    Missing { program: &'static str, hint: &'static str },
    /// A program of ours could not be run.
    #[error("run {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The host refused a step of preparing, ending or removing.
    #[error("{stage}")]
    Host {
        stage: &'static str,
        #[source]
        source: SysError,
    },
    #[error("{stage}")]
    Shim {
        stage: &'static str,
        #[source]
        source: ClientError,
    },
    /// Something has the name that was to be new. It is somebody else's: nothing was done, and nothing of it is
    /// to be removed.
    #[error("something named {iid} is on this host already")]
    Exists { iid: String },
    /// There is nothing running to do it to.
    #[error("{iid} is not running")]
    Absent { iid: String },
    /// What is there is not what it should be, so that nothing was done.
    #[error("{0}")]
    Refused(String),
}

impl DriverError {
    /// Was there nobody to ask: not there yet, or just gone? The next look tells which.
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Shim { source: ClientError::Connect(_), .. })
    }

    /// Would the same request fare better later, with nothing changed?
    pub fn is_transient(&self) -> bool {
        match self {
            // Memory, descriptors, a directory still in use.
            Self::Host { .. } | Self::Spawn { .. } => true,
            // It will speak the same version for as long as it lives.
            Self::Shim { source: ClientError::Version(_), .. } => false,
            // A shim that is busy, or dying: the next look tells.
            Self::Shim { .. } => true,
            // Needs somebody to install it.
            Self::Missing { .. } => false,
            Self::Refused(_) | Self::Absent { .. } => false,
            // The next start has another name.
            Self::Exists { .. } => true,
        }
    }
}
