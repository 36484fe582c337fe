//! Whole trees of a tenant's files: copied, given, measured and removed, by descriptors and without a program of
//! the system's. And the programs that only the makers of a file system have, which see no path but ours.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

pub(crate) use sodium_sys::disk::walk::{
    Excess, allocated_bytes, clear, copy, excess, length_bytes, remove, set_project, sync,
};
use sodium_sys::{SysError, disk, path};

/// Where programs of the system lie, whatever our own environment says.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of a directory that belongs to a tenant.
pub(crate) const MODE: u32 = 0o700;
/// Of what a program says, so much is kept: it becomes part of a sandbox's status.
const SAID_BYTES_MAX: u64 = 4096;

/// Runs a program of a package to its end and gives what it printed; what it complained of, if it failed.
pub(crate) fn run(command: Command, package: &str) -> Result<String, SysError> {
    run_to(command, package, 0, Stdio::null())
}

/// The same of a program that says by codes up to this that it did what it was to do.
pub(crate) fn run_to(
    mut command: Command,
    package: &str,
    code_max: i32,
    stdin: Stdio,
) -> Result<String, SysError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| match source.kind() == io::ErrorKind::NotFound {
        true => {
            SysError { call: format!("run {program}; hint: apt-get install {package}"), source }
        }
        false => SysError { call: program.clone(), source },
    };
    // Nothing of what the daemon was started with is the program's.
    command.env_clear().env("PATH", PROGRAMS).env("LC_ALL", "C").current_dir("/").stdin(stdin);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let (said, complained) = (child.stdout.take(), child.stderr.take());
    // Both at once, or a program that fills the other pipe waits for us.
    let (said, complained) = thread::scope(|scope| {
        let complained = scope.spawn(|| beginning(complained));
        (beginning(said), complained.join().unwrap_or_default())
    });
    let status = child.wait().map_err(failed)?;
    if status.code().is_some_and(|code| code <= code_max) {
        return Ok(said);
    }
    let why = if complained.trim().is_empty() { said } else { complained };
    Err(failed(io::Error::other(format!("{status}: {}", why.trim()))))
}

/// What is read to its end, but not kept to its end: a program may complain of every file of a tenant's.
fn beginning(pipe: Option<impl Read>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(SAID_BYTES_MAX).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// A directory that belongs to a tenant, if each has an owner of its own.
pub(crate) fn make(dir: &Path, ids: Option<(u32, u32)>) -> Result<(), SysError> {
    fs::DirBuilder::new()
        .mode(MODE)
        .create(dir)
        .map_err(|source| SysError::io("mkdir", dir, source))?;
    ids.map_or(Ok(()), |(uid, gid)| path::give(dir, uid, gid))
}

/// Makes one that is there as if it were new. Where there is no room, not even this can be written.
pub(crate) fn own(dir: &Path, ids: Option<(u32, u32)>) -> Result<(), SysError> {
    let about = fs::symlink_metadata(dir).map_err(|source| SysError::io("stat", dir, source))?;
    if about.mode() & 0o7777 != MODE {
        path::set_mode(dir, MODE)?;
    }
    match ids {
        Some((uid, gid)) if (about.uid(), about.gid()) != (uid, gid) => path::give(dir, uid, gid),
        Some(_) | None => Ok(()),
    }
}

/// Gives everything below `dir` to its new owner; symlinks themselves are given, never what they lead to.
pub(crate) fn give(dir: &Path, uid: u32) -> Result<(), SysError> {
    disk::walk::give(dir, uid, uid)
}
