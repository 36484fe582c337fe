//! The order a shim is started with: `launch.json` in its run directory.
//!
//! It says everything the shim needs, so that a shim never reads the daemon's configuration, and it
//! names the sandbox, so that a daemon that lost its database can tell what runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sys::cgroup::Group;

/// The file's name in the run directory.
pub const FILE: &str = "launch.json";
/// The lock held for as long as the shim lives.
pub const LOCK: &str = "lock";
/// Where the shim listens.
pub const SOCKET: &str = "sock";

/// Everything about one start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub iid: String,
    /// Name, uid and generation of the sandbox.
    pub name: String,
    pub uid: String,
    pub generation: u64,
    /// The daemon that ordered it; commands of an older one are refused.
    pub epoch: u64,
    /// The program on the host, and its arguments, the zeroth included.
    pub program: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub work_dir: PathBuf,
    /// Host uid and gid to become; `None` stays as it is.
    pub user: Option<(u32, u32)>,
    pub group: Group,
    pub open_files_max: Option<u64>,
    /// Columns and rows of a terminal, or pipes.
    pub tty: Option<(u16, u16)>,
    pub confinement: Confinement,
    /// Started ahead, and nobody's yet: it has no console, and no exit that anybody waits for.
    #[serde(default)]
    pub warm: bool,
    pub spool_dir: PathBuf,
    pub spool_bytes_max: u64,
    pub timeout_ms: Option<u64>,
    /// So much of its output is taken each second; the rest waits where it is.
    #[serde(default)]
    pub output_bytes_per_second: Option<u64>,
    /// How the run timeout ends the workload.
    pub stop_signal: i32,
    pub stop_grace_ms: u64,
    /// Where the exit goes.
    pub exit_path: PathBuf,
}

impl Launch {
    /// The terminal that the shim is to open; gVisor opens the one inside it itself.
    pub fn own_terminal(&self) -> Option<(u16, u16)> {
        self.tty.filter(|_| !matches!(self.confinement, Confinement::Gvisor { .. }))
    }
}

/// Who confines the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Confinement {
    /// `program` is bubblewrap. It finds these files and directories open at these numbers, so that
    /// it needs no right to walk to them, and reports on [`STATUS_FD`].
    Bubblewrap { inherited: Vec<(i32, PathBuf)> },
    /// `program` is runsc, which starts a sandbox and returns. It sees `binds` mounted over what is
    /// there, and only it; `cpus` is how many its guest is to count.
    Gvisor {
        binds: Vec<(PathBuf, PathBuf)>,
        /// Where there is to be a /proc that nothing is mounted over: the kernel lets a sandbox have a
        /// new one only if it could see all of an old one.
        whole_proc: PathBuf,
        /// Where the volumes of all sandboxes are mounted: out of its sight, so that it holds none of them.
        #[serde(default)]
        hidden: Option<PathBuf>,
        cpus: Option<u64>,
        /// Where it notes the sandbox's process.
        pid_file: PathBuf,
        /// Where it is to say what it does not have: a pipe of ours.
        user_log: PathBuf,
        /// Where it delivers the terminal, if there is to be one.
        console: PathBuf,
    },
    /// `program` is the workload; the shim's child confines itself before it becomes that.
    Itself { read_only: Vec<PathBuf>, writable: Vec<PathBuf> },
}

/// Where bubblewrap writes what became of the workload.
pub const STATUS_FD: i32 = 11;
