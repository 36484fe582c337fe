//! Disks: how much room there is, image files as devices, and quotas of whole trees.

pub mod loopback;
pub mod quota;
pub mod walk;

mod contents;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use self::contents::Means;
use crate::SysError;
use crate::path::NO_FOLLOW;

/// Less than this part of all that there is.
const FULL_SHARE: u64 = 200;

/// Room in a file system, or in the part of it that a quota leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What somebody without privileges may still write.
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
}

impl Space {
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.free_bytes)
    }

    pub fn used_inodes(&self) -> u64 {
        self.total_inodes.saturating_sub(self.free_inodes)
    }

    /// Whether next to nothing more can be written: the last blocks serve nobody. A file system that counts no inodes
    /// never lacks one.
    pub fn is_full(&self) -> bool {
        self.free_bytes <= self.total_bytes / FULL_SHARE
            || self.total_inodes > 0 && self.free_inodes == 0
    }
}

/// What is left where `path` lies.
pub fn space(path: &Path) -> Result<Space, SysError> {
    let stat = statvfs(path)
        .map_err(|errno| SysError::nix(format!("statvfs {}", path.display()), errno))?;
    Ok(Space {
        total_bytes: stat.blocks() * stat.fragment_size(),
        free_bytes: stat.blocks_available() * stat.fragment_size(),
        total_inodes: stat.files(),
        free_inodes: stat.files_available(),
    })
}

/// Major and minor number of the device that `path` lies on.
pub fn device(path: &Path) -> Option<(u64, u64)> {
    let device = fs::metadata(path).ok()?.st_dev();
    Some((nix::sys::stat::major(device), nix::sys::stat::minor(device)))
}

/// The disk that `path` lies on, which for a partition is the whole that it is part of: limits are kept there.
/// `None`: it lies on none, as what is in memory.
pub fn whole_device(path: &Path) -> Option<(u64, u64)> {
    let (major, minor) = device(path)?;
    let about = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    if !about.exists() {
        return None;
    }
    if !about.join("partition").exists() {
        return Some((major, minor));
    }
    let whole = fs::read_to_string(fs::canonicalize(about).ok()?.parent()?.join("dev")).ok()?;
    let (major, minor) = whole.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The size of a block device, as the kernel has it.
pub fn device_bytes((major, minor): (u64, u64)) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size")).ok()?;
    text.trim().parse::<u64>().ok().map(|sectors| sectors * 512)
}

/// Whether something is mounted at `path` itself.
pub fn is_mount_point(path: &Path) -> bool {
    let here = fs::symlink_metadata(path).map(|meta| meta.st_dev());
    let above = path.parent().and_then(|above| fs::metadata(above).ok()).map(|meta| meta.st_dev());
    here.is_ok_and(|here| above.is_some_and(|above| here != above))
}

/// What a file takes of the disk it lies on.
pub fn allocated_bytes(meta: &fs::Metadata) -> u64 {
    meta.st_blocks() * 512
}

/// Copies a file of ours, without its holes, to where there is none yet.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), SysError> {
    let failed = |source| SysError::io("copy", from, source);
    let source = File::options().read(true).custom_flags(NO_FOLLOW).open(from).map_err(failed)?;
    let made = File::options().write(true).create_new(true).mode(0o600).open(to);
    let target = made.map_err(|source| SysError::io("create", to, source))?;
    let length = i64::try_from(source.metadata().map_err(failed)?.len()).unwrap_or(i64::MAX);
    let (source, target) = (OwnedFd::from(source), OwnedFd::from(target));
    let carried = Means::default().carry(&source, &target, length);
    // It gets its name when it is whole, which after a loss of power means that it is on disk.
    let carried = carried.and_then(|()| nix::unistd::fsync(&target));
    carried.map_err(|errno| failed(errno.into()))
}

/// Has everything that was written to the file system at `path` be on disk.
pub fn sync(path: &Path) -> Result<(), SysError> {
    let failed = |source| SysError::io("sync", path, source);
    let file = File::open(path).map_err(failed)?;
    nix::unistd::syncfs(&file).map_err(|errno| failed(errno.into()))
}
