//! What is to be run inside what runs, and the way in. A file, since an environment may be large.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use sodium_sys::cgroup::Group;

/// Everything about one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOrder {
    /// What to run, by its name inside.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// As the program sees it.
    pub work_dir: PathBuf,
    /// Columns and rows of a terminal, or pipes.
    pub tty: Option<(u16, u16)>,
    /// Where whoever runs it is itself.
    #[serde(default)]
    pub helpers: Group,
    pub way: Way,
}

/// How to get to where the workload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Way {
    /// The workload has namespaces of its own, bubblewrap's.
    Namespaces { pid: u32, confined: Confined, shares_network: bool },
    /// It confines itself.
    Beside {
        confined: Confined,
        read_only: Vec<PathBuf>,
        writable: Vec<PathBuf>,
        #[serde(default)]
        without_tcp: bool,
        room: Option<OfRoom>,
    },
    /// runsc starts the program and stays until that ends, but does not take it along when it is killed
    /// itself: the program must be killed by its number inside, which runsc notes in `pid_file`.
    Gvisor { program: String, args: Vec<String>, kill_args: Vec<String>, pid_file: PathBuf },
}

/// A workload that confines itself, in a room of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfRoom {
    pub pid: u32,
    pub shares_network: bool,
}

/// What every process of the host that belongs to the instance is bound by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// Host uid and gid to become; `None` stays as it is.
    pub user: Option<(u32, u32)>,
    pub group: Group,
    pub open_files_max: Option<u64>,
}
