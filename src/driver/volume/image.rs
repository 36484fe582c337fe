//! A volume in a file: an ext4 of ours on a loop device. The file is sparse, and what is deleted in it is given
//! back. Tenants never see the file, so that they cannot hand the kernel a file system of their making.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use super::MIB;
use crate::driver::{tree, volume};
use crate::sys::disk::{self, loopback};
use crate::sys::{SysError, mount};

/// Whose programs make, check and resize ext4.
const PACKAGE: &str = "e2fsprogs";
/// Where file systems lie that images begin as copies of: one for each size, made once.
const TEMPLATES: &str = ".templates";
/// From here on an image has a journal, which takes this much of it.
const JOURNAL_FROM_BYTES: u64 = 32 * MIB;
const JOURNAL_MIB: u64 = 4;

/// Makes one, mounts it, writes to it, and takes it away again.
pub(super) fn works(root: &Path, at: &Path) -> Result<(), SysError> {
    let image = root.join(".try.img");
    let tried = create(root, &image, volume::BYTES_MIN)
        .and_then(|()| self::mount(&image, at))
        .and_then(|()| {
            fs::write(at.join("file"), "x").map_err(|source| SysError::io("write", at, source))
        });
    let _ = unmount(at);
    let _ = fs::remove_file(&image);
    tried
}

/// A new image, under its name only when it is whole.
pub(super) fn create(root: &Path, image: &Path, bytes: u64) -> Result<(), SysError> {
    let template = template(root, bytes)?;
    let unfinished = image.with_extension("new");
    let _ = fs::remove_file(&unfinished);
    disk::copy_sparse(&template, &unfinished)?;
    fs::rename(&unfinished, image).map_err(|source| SysError::io("rename", image, source))
}

fn template(root: &Path, bytes: u64) -> Result<std::path::PathBuf, SysError> {
    let dir = root.join(TEMPLATES);
    let template = dir.join(format!("ext4-{}.img", bytes / MIB));
    if template.exists() {
        return Ok(template);
    }
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|source| SysError::io("mkdir", &dir, source))?;
    let unfinished = template.with_extension("new");
    let failed = |source| SysError::io("make", &unfinished, source);
    let options =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    options.and_then(|file| file.set_len(bytes)).map_err(failed)?;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O"]);
    if bytes >= JOURNAL_FROM_BYTES {
        command.arg("^resize_inode,^huge_file,metadata_csum");
        command.args(["-J", &format!("size={JOURNAL_MIB}")]);
    } else {
        command.arg("^resize_inode,^huge_file,metadata_csum,^has_journal");
    }
    command.args(["-N", &volume::inodes_of(bytes).to_string()]);
    command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"]);
    command.arg(&unfinished);
    tree::run(command, PACKAGE)?;
    fs::rename(&unfinished, &template).map_err(failed)?;
    Ok(template)
}

pub(super) fn mount(image: &Path, at: &Path) -> Result<(), SysError> {
    let device = loopback::attach(image)?;
    mount::ext4(&device.path, at)
}

/// Takes a mount away, and the device behind it. Nothing of ours runs in it; what somebody else still has open
/// keeps it until then.
pub(super) fn unmount(at: &Path) -> Result<(), SysError> {
    if !disk::is_mount_point(at) {
        return Ok(());
    }
    let device = disk::device(at);
    if mount::unmount(at, false).is_err() {
        mount::unmount(at, true)?;
    }
    if let Some((loopback::MAJOR, number)) = device {
        loopback::retire(u32::try_from(number).unwrap_or_default());
    }
    Ok(())
}

/// Of one that is not mounted. It was checked to hold no more than it is to have.
pub(super) fn resize(image: &Path, bytes: u64) -> Result<(), SysError> {
    let failed = |source| SysError::io("resize", image, source);
    let file = File::options().write(true).open(image).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() < bytes {
        file.set_len(bytes).map_err(failed)?;
    }
    let mut check = Command::new("e2fsck");
    check.args(["-f", "-p"]).arg(image);
    tree::run(check, PACKAGE)?;
    let mut command = Command::new("resize2fs");
    command.arg(image).arg(format!("{}K", bytes / 1024));
    tree::run(command, PACKAGE)?;
    file.set_len(bytes).map_err(failed)
}

/// Of one that is in use. Only the kernel's administrator may, and only to make it larger.
pub(super) fn grow_mounted(image: &Path, at: &Path, bytes: u64) -> Result<(), SysError> {
    let failed = |source| SysError::io("grow", image, source);
    let file = File::options().write(true).open(image).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > bytes {
        let source =
            io::Error::other("an image in use can only grow; it shrinks at the next start");
        return Err(failed(source));
    }
    loopback::grow(&file, at, bytes)
}
