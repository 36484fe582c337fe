//! Whole trees of a tenant's files: copied, given, measured and removed. Nothing runs in them meanwhile, and no
//! symlink in them is followed.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::sys::{SysError, disk, path};

/// Where programs of the system lie, whatever our own environment says.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// By a program that follows no symlink, keeps what is sparse sparse, and shares blocks where the file
/// system can.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), SysError> {
    let flags = ["--archive", "--reflink=auto", "--sparse=always", "--no-target-directory", "--"];
    let mut command = Command::new("cp");
    command.args(flags).args([from, to]);
    run(command, "coreutils").map(drop)
}

/// Runs a program of a package to its end and gives what it printed; what it complained of, if it failed.
pub(super) fn run(mut command: Command, package: &str) -> Result<String, SysError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| match source.kind() == io::ErrorKind::NotFound {
        true => {
            SysError { call: format!("run {program}; hint: apt-get install {package}"), source }
        }
        false => SysError { call: program.clone(), source },
    };
    let done = command.env("PATH", PROGRAMS).stdin(Stdio::null()).output().map_err(failed)?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(failed(io::Error::other(format!("{}: {said}", done.status))))
}

/// std removes by directory descriptors, so that a tenant cannot lead it away.
pub(super) fn remove(path: &Path) -> Result<(), SysError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SysError::io("remove", path, source)),
    }
}

/// A directory that belongs to a tenant, if each has an owner of its own.
pub(super) fn make(dir: &Path, ids: Option<(u32, u32)>) -> Result<(), SysError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|source| SysError::io("mkdir", dir, source))?;
    ids.map_or(Ok(()), |(uid, gid)| path::give(dir, uid, gid))
}

/// Gives everything below `dir` to its new owner; symlinks themselves are given, never what they lead to.
pub(super) fn give(dir: &Path, uid: u32) -> Result<(), SysError> {
    path::give(dir, uid, uid)?;
    for entry in read(dir)? {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir { give(&entry.path(), uid)? } else { path::give(&entry.path(), uid, uid)? }
    }
    Ok(())
}

/// Puts everything below `dir` into a project of quotas. What cannot be opened, like a pipe, takes no room.
pub(super) fn set_project(dir: &Path, project: u32) -> Result<(), SysError> {
    disk::quota::set_project(dir, project)?;
    for entry in read(dir)? {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => set_project(&entry.path(), project)?,
            Ok(kind) if kind.is_file() => disk::quota::set_project(&entry.path(), project)?,
            Ok(_) | Err(_) => (),
        }
    }
    Ok(())
}

fn read(dir: &Path) -> Result<Vec<fs::DirEntry>, SysError> {
    let entries = fs::read_dir(dir).map_err(|source| SysError::io("read", dir, source))?;
    Ok(entries.flatten().collect())
}

/// What a tree takes of the disk. What vanishes meanwhile is not counted.
pub(super) fn allocated_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => {
                disk::allocated_bytes(&meta) + allocated_bytes(&entry.path())
            }
            Ok(meta) => disk::allocated_bytes(&meta),
            Err(_) => 0,
        })
        .sum()
}
