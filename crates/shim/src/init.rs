//! The first program of a guest that was started ahead: it waits to be told what it is for, and becomes
//! that. It runs as the guest's root, before anything of a tenant, and gives up all that is more than
//! the bundle of a sandbox started for itself would have given.
//!
//! The order comes over standard input, `u32 length | JSON`; what follows it there is the workload's.
//!
//! In bubblewrap's sandboxes it is the first program as well, when all walls stand already: what it is to become
//! comes over a socket, since whatever bubblewrap is told by arguments or environment is told to the host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::child;
use crate::launch::{ORDER_FD, Program};
use sodium_sys::error::chain;
use sodium_sys::spawn::{self, Limit};
use sodium_sys::{self as sys, SysError, namespace, socket};

/// What it is called, which is how this program knows that it is to be this.
pub const NAME: &str = "sodium-init";
/// Longest order.
const ORDER_BYTES_MAX: usize = 4 << 20;
/// As shells have it.
const EXIT_NOT_STARTED: u8 = 127;

/// What to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitOrder {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub work_dir: PathBuf,
    pub hostname: String,
    /// Who the workload is inside.
    pub user: u32,
    pub open_files_max: Option<u64>,
    pub processes_max: Option<u64>,
    /// Stands before what is said if it could not; nobody else can know it.
    pub secret: String,
}

impl InitOrder {
    /// As it goes over standard input.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("an order has string keys");
        let length = u32::try_from(json.len()).expect("specs are far below 4 GiB");
        [&length.to_le_bytes()[..], &json].concat()
    }
}

/// Its argument where what it is to become waits at [`ORDER_FD`].
pub const START: &str = "start";

/// The socket over which [`start`] finds a program, and where to say why it could not become that. It is all in
/// the socket already: nobody waits for anybody.
pub(super) fn hand_over(program: &Program, report: &OwnedFd) -> Result<OwnedFd, SysError> {
    let json = serde_json::to_vec(program).expect("a program has string keys");
    let order = sys::memory_file(&json)?;
    let (ours, theirs) = socket::packets()?;
    socket::send_with_fds(ours.as_fd(), b"1", [order.as_fd(), report.as_fd()])?;
    Ok(theirs)
}

/// Becomes the program. Its walls stand already.
pub(super) fn start() -> ExitCode {
    let (program, report) = match receive() {
        Ok(received) => received,
        Err(error) => {
            super::complain(&chain(&error));
            return ExitCode::from(EXIT_NOT_STARTED);
        }
    };
    // bubblewrap has taken every new privilege away already, which is what this assumes.
    if let Err(error) = child::leave_strangers(program.shares_network) {
        child::give_up(report, ("landlock", error));
    }
    child::give_up(report, ("exec", spawn::exec_found(&program.args, &program.env)))
}

/// Nothing but standard descriptors is open after the next exec.
fn receive() -> Result<(Program, OwnedFd), SysError> {
    let socket = sys::inherited(ORDER_FD)?;
    let (_, fds) = socket::receive_with_fds(socket.as_fd(), &mut [0; 1])?;
    spawn::cloexec_from(3)?;
    let failed = |source| SysError { call: "read order".to_owned(), source };
    let Ok([order, report]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    };
    let mut json = Vec::new();
    File::from(order).take(ORDER_BYTES_MAX as u64).read_to_end(&mut json).map_err(failed)?;
    let program = serde_json::from_slice(&json).map_err(|error| failed(error.into()))?;
    Ok((program, report))
}

/// Waits, and becomes the workload. Returns only if it could not.
pub(super) fn run() -> ExitCode {
    match read_order() {
        Ok(Some(order)) => {
            let failed = become_workload(&order);
            let said = format!("{}{}", order.secret, chain(&failed));
            // In one piece, so that it is read as one.
            let _ = io::stderr().write_all(said.as_bytes());
        }
        // Nobody wants it: the sandbox is being taken down.
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => super::complain(&format!("read order: {error}")),
    }
    ExitCode::from(EXIT_NOT_STARTED)
}

/// Not a byte more is read than belongs to it.
fn read_order() -> io::Result<Option<InitOrder>> {
    let mut stdin = sodium_sys::unbuffered_stdin()?;
    let mut length = [0; 4];
    match stdin.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > ORDER_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = vec![0; length];
    stdin.read_exact(&mut json)?;
    Ok(Some(serde_json::from_slice(&json)?))
}

fn become_workload(order: &InitOrder) -> SysError {
    let steps = || {
        namespace::set_hostname(&order.hostname)?;
        let limits = [
            (Limit::CoreBytes, Some(0)),
            (Limit::OpenFiles, order.open_files_max),
            (Limit::Processes, order.processes_max),
        ];
        for (limit, value) in limits {
            value.map_or(Ok(()), |value| spawn::limit(limit, value))?;
        }
        spawn::reset_signals()?;
        namespace::drop_bounding_capabilities();
        spawn::become_user(order.user, order.user)?;
        namespace::drop_capabilities()?;
        spawn::no_new_privileges()?;
        std::env::set_current_dir(&order.work_dir)
            .map_err(|source| SysError::io("chdir", &order.work_dir, source))
    };
    match steps() {
        Err(error) => error,
        Ok(()) => spawn::exec_found(&order.args, &order.env),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_how_long_it_is() {
        let order = InitOrder {
            args: vec!["sh".to_owned()],
            env: vec![("A".to_owned(), "b".to_owned())],
            work_dir: "/home/container".into(),
            hostname: "web".to_owned(),
            user: 1000,
            open_files_max: Some(10),
            processes_max: None,
            secret: "x".to_owned(),
        };
        let bytes = order.encode();
        let (length, json) = bytes.split_at(4);
        assert_eq!(
            usize::try_from(u32::from_le_bytes(length.try_into().unwrap())).unwrap(),
            json.len()
        );
        assert_eq!(serde_json::from_slice::<InitOrder>(json).unwrap(), order);
    }
}
