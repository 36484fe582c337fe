//! The three standard descriptors of a child: pipes, or a terminal.

use std::os::fd::{AsFd, OwnedFd};

use sodium_sys::{SysError, poll, pty, spawn};

/// Our ends. None of them blocks.
#[derive(Debug)]
pub(super) struct Ours {
    /// For a terminal also where its size is set.
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    /// A terminal has only one output.
    pub stderr: Option<OwnedFd>,
}

/// The child's ends.
#[derive(Debug)]
pub(super) struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A terminal of these columns and rows, or pipes.
pub(super) fn open(tty: Option<(u16, u16)>) -> Result<(Ours, Theirs), SysError> {
    let (ours, theirs) = match tty {
        Some((cols, rows)) => terminal(cols, rows)?,
        None => pipes()?,
    };
    for fd in [Some(&ours.stdin), Some(&ours.stdout), ours.stderr.as_ref()].into_iter().flatten() {
        poll::set_nonblocking(fd.as_fd())?;
    }
    Ok((ours, theirs))
}

fn terminal(cols: u16, rows: u16) -> Result<(Ours, Theirs), SysError> {
    let pty = pty::open(cols, rows)?;
    let ours = Ours { stdin: copy(&pty.master)?, stdout: pty.master, stderr: None };
    let (stdin, stdout) = (copy(&pty.slave)?, copy(&pty.slave)?);
    Ok((ours, Theirs { stdin, stdout, stderr: pty.slave }))
}

fn pipes() -> Result<(Ours, Theirs), SysError> {
    let (stdin, write) = poll::pipe()?;
    let (out, stdout) = poll::pipe()?;
    let (err, stderr) = poll::pipe()?;
    let ours = Ours { stdin: write, stdout: out, stderr: Some(err) };
    Ok((ours, Theirs { stdin, stdout, stderr }))
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, SysError> {
    fd.try_clone().map_err(|source| SysError { call: "dup".to_owned(), source })
}

impl Theirs {
    /// Another hold on the terminal.
    pub(super) fn hold(&self) -> Result<OwnedFd, SysError> {
        copy(&self.stdin)
    }

    /// Makes the terminal that of this session. In the child, once it is in its place.
    pub(super) fn control(&self) -> Result<(), SysError> {
        pty::make_controlling(std::io::stdin().as_fd())
    }

    /// Puts them where they belong, and has everything else closed by the exec. In the child.
    pub(super) fn place(&self) -> Result<(), SysError> {
        spawn::cloexec_from(3)?;
        for (fd, number) in [(&self.stdin, 0), (&self.stdout, 1), (&self.stderr, 2)] {
            spawn::place_fd(fd.as_fd(), number)?;
        }
        Ok(())
    }
}
