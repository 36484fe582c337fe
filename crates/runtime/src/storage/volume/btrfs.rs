//! A volume as a btrfs subvolume with a limit on its qgroup: bytes alone, since btrfs counts no inodes. By the
//! file system's own program, which is asked at creation, at changes and for its numbers.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::storage::fsops;
use sodium_sys::SysError;
use sodium_sys::disk::Space;
use sodium_sys::mount;

/// The first inode of a subvolume.
const SUBVOLUME_INODE: u64 = 256;

/// What a qgroup holds and may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Such as 0/257.
    pub id: String,
    pub used_bytes: u64,
    /// `None`: no limit.
    pub bytes_max: Option<u64>,
}

impl Usage {
    pub(crate) fn space(&self) -> Space {
        let total_bytes = self.bytes_max.unwrap_or(u64::MAX);
        let free_bytes = total_bytes.saturating_sub(self.used_bytes);
        Space { total_bytes, free_bytes, total_inodes: 0, free_inodes: 0 }
    }
}

/// Makes one, limits it, reads the limit back, and removes it.
pub(crate) fn works(root: &Path) -> Result<(), String> {
    if mount::of(root).is_none_or(|about| about.kind != "btrfs") {
        return Err("the file system is another one".to_owned());
    }
    let trial = root.join(".try");
    let said = |error: SysError| sodium_sys::error::chain(&error);
    let _ = remove(&trial);
    ensure(&trial, super::BYTES_MIN).map_err(said)?;
    let usage = usage(&trial).map_err(said);
    remove(&trial).map_err(said)?;
    match usage?.bytes_max {
        Some(super::BYTES_MIN) => Ok(()),
        other => Err(format!("the limit reads back as {other:?}")),
    }
}

pub(crate) fn ensure(dir: &Path, bytes: u64) -> Result<(), SysError> {
    if !dir.exists() {
        let root = dir.parent().unwrap_or(dir);
        // Harmless where they are on.
        btrfs(&["quota", "enable"], root)?;
        btrfs(&["subvolume", "create"], dir)?;
        sodium_sys::path::set_mode(dir, fsops::MODE)?;
    }
    let held = usage(dir)?.used_bytes;
    super::refuse_below(held, bytes)?;
    limit(dir, bytes)
}

pub(crate) fn limit(dir: &Path, bytes: u64) -> Result<(), SysError> {
    btrfs(&["qgroup", "limit", &bytes.to_string()], dir).map(drop)
}

/// Whether it is one, which its number says.
pub(crate) fn is_subvolume(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.st_ino() == SUBVOLUME_INODE)
}

pub(crate) fn remove(dir: &Path) -> Result<(), SysError> {
    if !dir.exists() {
        return Ok(());
    }
    let group = usage(dir).ok().map(|usage| usage.id);
    if btrfs(&["subvolume", "delete"], dir).is_err() {
        // As one within which there are others.
        fsops::remove(dir)?;
    }
    if let (Some(group), Some(root)) = (group, dir.parent()) {
        // A newer kernel removes it by itself when it has removed the files; an older one keeps it for ever.
        let _ = btrfs(&["qgroup", "destroy", &group], root);
    }
    Ok(())
}

pub(crate) fn usage(dir: &Path) -> Result<Usage, SysError> {
    let table = btrfs(&["qgroup", "show", "--raw", "-r", "-F", "--sync"], dir)?;
    read_usage(&table).ok_or_else(|| SysError {
        call: format!("read the qgroup of {}", dir.display()),
        source: std::io::Error::other(table),
    })
}

/// Of a table with one row: id, referenced, exclusive, limit on referenced.
fn read_usage(table: &str) -> Option<Usage> {
    let row = table.lines().find(|line| line.trim_start().starts_with("0/"))?;
    let mut words = row.split_whitespace();
    let id = words.next()?.to_owned();
    let used_bytes = words.next()?.parse().ok()?;
    Some(Usage { id, used_bytes, bytes_max: words.nth(1)?.parse().ok() })
}

fn btrfs(words: &[&str], at: &Path) -> Result<String, SysError> {
    let mut command = Command::new("btrfs");
    command.args(words).arg(at);
    fsops::run(command, "btrfs-progs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qgroup_is_read_from_its_row() {
        let table = "qgroupid         rfer         excl     max_rfer \n\
                     --------         ----         ----     -------- \n\
                     0/257           16384        16384     20971520 \n";
        let want = Usage { id: "0/257".to_owned(), used_bytes: 16384, bytes_max: Some(20 << 20) };
        assert_eq!(read_usage(table), Some(want));
        let unlimited = read_usage("0/257 1 1 none").unwrap();
        assert_eq!((unlimited.bytes_max, unlimited.space().is_full()), (None, false));
        assert_eq!(read_usage(""), None);
    }
}
