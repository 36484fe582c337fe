//! Project quotas: what all files of one project may take together. A directory hands its project down to
//! what is made in it. XFS and ext4 have them, if they are mounted with `prjquota`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::SysError;

const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801C_581F;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401C_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const SYS_QUOTACTL_FD: libc::c_long = 443;
const PROJECT: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
const Q_XGETQSTAT: u32 = 0x5805;
/// Limits of projects are kept, in the answer to Q_XGETQSTAT.
const PROJECTS_ENFORCED: u16 = 0x20;
/// Both limits, in bytes and in inodes, are to be set.
const QIF_LIMITS: u32 = 5;
/// Limits in bytes are counted in these.
const BLOCK_BYTES: u64 = 1024;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Quota {
    hard_blocks: u64,
    soft_blocks: u64,
    used_bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    used_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// What a project may take, and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    pub bytes_max: u64,
    pub inodes_max: u64,
    pub used_bytes: u64,
    pub used_inodes: u64,
}

/// Whether the file system that `dir` lies on keeps limits of projects.
pub fn is_enforced(dir: &Path) -> bool {
    // `struct fs_quota_stat` is smaller; version, then flags.
    let mut stat = [0_u64; 32];
    let Ok(file) = File::open(dir) else { return false };
    // SAFETY: the kernel writes a `struct fs_quota_stat`, which fits.
    let asked = unsafe { quotactl(&file, Q_XGETQSTAT, 0, stat.as_mut_ptr().cast()) };
    let flags = u16::from_le_bytes([stat[0].to_le_bytes()[2], stat[0].to_le_bytes()[3]]);
    asked.is_ok() && flags & PROJECTS_ENFORCED != 0
}

/// Puts an empty directory, and what will be made in it, into a project.
pub fn set_project(dir: &Path, project: u32) -> Result<(), SysError> {
    let file = File::open(dir).map_err(|source| SysError::io("open", dir, source))?;
    set_project_of(&file, project, true).map_err(|errno| {
        SysError::nix(format!("set project {project} of {}", dir.display()), errno)
    })
}

/// The same of one thing alone. What will be made in it: if it `hands_down` its project.
pub(super) fn set_project_of(file: &File, project: u32, hands_down: bool) -> nix::Result<()> {
    let mut attributes = attributes(file)?;
    if hands_down {
        attributes.flags |= FS_XFLAG_PROJINHERIT;
    }
    attributes.project = project;
    // SAFETY: the pointer is to a whole `struct fsxattr`.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    nix::errno::Errno::result(ret).map(drop)
}

/// The project that a directory is in. 0: in none.
pub fn project_of(dir: &Path) -> Result<u32, SysError> {
    let file = File::open(dir).map_err(|source| SysError::io("open", dir, source))?;
    attributes(&file)
        .map(|attributes| attributes.project)
        .map_err(|errno| SysError::nix(format!("FS_IOC_FSGETXATTR {}", dir.display()), errno))
}

fn attributes(file: &File) -> nix::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the pointer is to a whole `struct fsxattr`.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    nix::errno::Errno::result(ret).map(|_| attributes)
}

/// Limits a project on the file system that `dir` lies on; zeros are no limit.
pub fn limit(dir: &Path, project: u32, bytes: u64, inodes: u64) -> Result<(), SysError> {
    let file = File::open(dir).map_err(|source| SysError::io("open", dir, source))?;
    let mut quota = Quota {
        hard_blocks: bytes / BLOCK_BYTES,
        hard_inodes: inodes,
        valid: QIF_LIMITS,
        ..Quota::default()
    };
    // SAFETY: the pointer is to a whole `struct if_dqblk`.
    unsafe { quotactl(&file, Q_SETQUOTA, project, (&raw mut quota).cast()) }
}

/// What the kernel says of a project.
pub fn project(dir: &Path, project: u32) -> Result<Project, SysError> {
    let file = File::open(dir).map_err(|source| SysError::io("open", dir, source))?;
    let mut quota = Quota::default();
    // SAFETY: the kernel writes a whole `struct if_dqblk`.
    unsafe { quotactl(&file, Q_GETQUOTA, project, (&raw mut quota).cast())? };
    Ok(Project {
        bytes_max: quota.hard_blocks * BLOCK_BYTES,
        inodes_max: quota.hard_inodes,
        used_bytes: quota.used_bytes,
        used_inodes: quota.used_inodes,
    })
}

/// # Safety
///
/// `argument` points to what `command` reads or writes.
unsafe fn quotactl(
    file: &File,
    command: u32,
    id: u32,
    argument: *mut libc::c_void,
) -> Result<(), SysError> {
    let command = command << 8 | PROJECT;
    // SAFETY: the descriptor is open, and the caller vouches for the pointer.
    let ret = unsafe { libc::syscall(SYS_QUOTACTL_FD, file.as_raw_fd(), command, id, argument) };
    if ret < 0 { Err(SysError::last(format!("quotactl_fd({command:#x}, {id})"))) } else { Ok(()) }
}
