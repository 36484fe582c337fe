//! The order a shim is started with: `launch.json` in its run directory.
//!
//! It says everything the shim needs, so that a shim never reads the daemon's configuration, and it
//! names the sandbox, so that a daemon that lost its database can tell what runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use sodium_sys::cgroup::Group;

/// The file's name in the run directory.
pub const FILE: &str = "launch.json";
/// The lock held for as long as the shim lives.
pub const LOCK: &str = "lock";
/// In a run directory: a link to the group, in version 2, in which what helps the instance is born.
pub const HELPERS: &str = "helpers";
/// Where the shim listens.
pub const SOCKET: &str = "sock";

/// bubblewrap's option for a network of its own, which the shim leaves out if it has put it into one.
pub const UNSHARE_NETWORK: &str = "--unshare-net";

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
    /// The workload's.
    pub group: Group,
    /// The shim's own.
    #[serde(default, skip_serializing_if = "Group::is_nowhere")]
    pub helpers: Group,
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
    /// Whether the shim is to put it into a network of its own: bubblewrap makes one for whoever may make none. gVisor
    /// makes another one for its guest; this one is for what runsc listens on.
    pub fn wants_network(&self) -> bool {
        match &self.confinement {
            Confinement::Bubblewrap { inside, stage, .. } => {
                stage.is_some() && !inside.shares_network
            }
            Confinement::Itself { room, .. } => {
                room.as_ref().is_some_and(|room| !room.shares_network)
            }
            Confinement::Gvisor { shares_network, .. } => !shares_network,
        }
    }

    /// The terminal that the shim is to open; gVisor opens the one inside it itself.
    pub fn own_terminal(&self) -> Option<(u16, u16)> {
        self.tty.filter(|_| !matches!(self.confinement, Confinement::Gvisor { .. }))
    }
}

/// As it was for whoever was started before this was asked.
fn yes() -> bool {
    true
}

/// Who confines the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Confinement {
    /// `program` is bubblewrap. It finds these files open at these numbers, reads its `options` from
    /// [`OPTIONS_FD`], reports on [`STATUS_FD`], and starts our init, which takes `inside` from [`ORDER_FD`] and
    /// becomes that: no byte of a tenant's is in the arguments or the environment of a process outside.
    Bubblewrap {
        inherited: Vec<(i32, PathBuf)>,
        #[serde(default)]
        options: Vec<String>,
        #[serde(default)]
        inside: Program,
        /// `None` where the runtime is the daemon's own user, and may walk wherever that may.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<Stage>,
    },
    /// `program` is runsc, which starts a sandbox and returns. It sees `binds` mounted over what is
    /// there, and only it.
    Gvisor {
        /// What is made for sandboxes, and is to be found at [`RUNSC_STAGE`]. `None`: whoever is nobody may walk to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<PathBuf>,
        binds: Vec<(PathBuf, PathBuf)>,
        /// Where there is to be a /proc that nothing is mounted over: the kernel lets a sandbox have a
        /// new one only if it could see all of an old one.
        whole_proc: PathBuf,
        /// Where the volumes of all sandboxes are mounted: out of its sight, so that it holds none of them.
        #[serde(default)]
        hidden: Option<PathBuf>,
        /// What it is to find at [`CGROUPS`] instead of what is there, which is none of its business.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cgroups: Option<PathBuf>,
        /// By how much its timers may be late once it runs. 0: as they are.
        #[serde(default)]
        timer_slack_ns: u64,
        /// Where it notes the sandbox's process.
        pid_file: PathBuf,
        /// Where it is to say what it does not have: a pipe of ours.
        user_log: PathBuf,
        /// Where it delivers the terminal, if there is to be one.
        console: PathBuf,
        /// Whether it and its shim are in the host's network.
        #[serde(default = "yes")]
        shares_network: bool,
    },
    /// `program` is the workload; the shim's child confines itself before it becomes that.
    Itself {
        read_only: Vec<PathBuf>,
        writable: Vec<PathBuf>,
        /// Nothing but Landlock keeps it from TCP.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        without_tcp: bool,
        /// `None`: it shares the host's namespaces, because whoever runs the daemon may make none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        room: Option<Room>,
    },
}

/// What is run inside, by whoever is inside already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Whether it shares a network with others, whose abstract sockets are none of its business.
    #[serde(default)]
    pub shares_network: bool,
}

/// Mounts that only a runtime sees, at [`STAGE`]: it needs no right to pass the directories in which they lie.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What is to appear, and as which name.
    pub binds: Vec<(PathBuf, String)>,
    /// What is mounted below here is none of its business, and is not held by it.
    pub hidden: Option<PathBuf>,
}

/// Namespaces of its own for a process that nothing else confines, and a root in which there is this and no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Shown as they are on the host, which may write to them: trees, files, links.
    pub read_only: Vec<PathBuf>,
    pub devices: Vec<PathBuf>,
    /// Its own trees, and where they appear.
    pub own: Vec<(PathBuf, PathBuf)>,
    pub hostname: String,
    pub shares_network: bool,
}

/// Where a [`Stage`] is. Every host has it, and no runtime that gets one needs what is there.
pub const STAGE: &str = "/sys";
/// Where runsc's processes, which are nobody on the host, find what is made for sandboxes if they may not walk to it.
/// Every host has it, and everybody may pass. Of /sys they need other parts, so that it cannot be a [`STAGE`].
pub const RUNSC_STAGE: &str = "/sys/firmware";
/// Where runsc looks for cgroups.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// Where bubblewrap finds its options, each ended by a NUL.
pub const OPTIONS_FD: i32 = 12;
/// Where our init finds what it is to become.
pub const ORDER_FD: i32 = 13;
/// Where bubblewrap writes what became of the workload.
pub const STATUS_FD: i32 = 11;
