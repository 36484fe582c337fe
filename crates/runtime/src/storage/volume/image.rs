//! A volume in a file: an ext4 of ours on a loop device. The file is sparse, and what is deleted in it is given
//! back. Tenants never see the file, so that they cannot hand the kernel a file system of their making.
//!
//! It grows while it is in use. For every other size a new image is made and the files are copied into it, which
//! takes the old one's place when it is whole: a resize2fs that loses its power loses the files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::MutexGuard;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::{Ask, MIB, Volumes, refuse_below, rename};
use crate::storage::{fsops, volume};
use sodium_sys::disk::{self, loopback};
use sodium_sys::{SysError, mount, own};

/// Whose programs make and check ext4.
const PACKAGE: &str = "e2fsprogs";
/// Where file systems lie that images begin as copies of: one for each size, made once, and the sizes that were asked
/// for last. Each takes up to a MiB, and whoever writes specs chooses the sizes.
const TEMPLATES: &str = ".templates";
const TEMPLATE_COUNT_MAX: usize = 16;
/// What the first is called, which is only tried.
const TRIAL: &str = ".try";
/// Trials that were never ended, one upon another.
const TRIALS_MAX: usize = 64;
/// What an image is called until it is whole.
pub(crate) const UNFINISHED: &str = "new";
/// From here on an image has a journal, which takes this much of it.
const JOURNAL_FROM_BYTES: u64 = 32 * MIB;
const JOURNAL_MIB: u64 = 4;
/// e2fsck found something and mended it.
const MENDED: i32 = 3;
/// On a host with less than this, what is written to an image may find no room.
const LOW_BYTES: u64 = 64 * MIB;
/// Where ext4 describes itself.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
/// It was unmounted in order, and no error was met in it.
const CLEAN: u16 = 1;
const ERRORS: u16 = 2;
const HAS_JOURNAL: u16 = 4;
/// ext4 lies in groups of so many bytes, and leaves out a last one that is too small for its own tables.
const GROUP_BYTES: u64 = 128 * MIB;
const GROUP_TABLES_BYTES: u64 = 3 * MIB;
/// A device lets go of its file shortly after the last mount of it.
const RELEASE_TRIES: usize = 40;
const RELEASE_PAUSE: Duration = Duration::from_millis(25);

impl Volumes {
    pub(crate) fn image_works(&self) -> Result<(), SysError> {
        self.end_trial()?;
        let at = self.mounts.join(TRIAL);
        self.mount_point(&at)?;
        let tried = works(&self.root, &at);
        self.remove_mount_point(&at).and(tried)
    }

    /// Takes away what a daemon that was killed while it tried has left. Nobody else may try meanwhile. Repeating it
    /// is harmless.
    pub fn end_trial(&self) -> Result<(), SysError> {
        let at = self.mounts.join(TRIAL);
        // One for each that was killed in its turn.
        for _ in 0..TRIALS_MAX {
            if !disk::is_mount_point(&at) {
                break;
            }
            unmount(&at)?;
        }
        self.remove_mount_point(&at)?;
        fsops::remove(&trial_image(&self.root))
    }

    /// Has an image that is there be mounted, and able to be written to.
    pub fn mount(&self, uid: Uuid) -> Result<(), SysError> {
        let (image, at) = (self.image(uid), self.mount_of(uid));
        if !image.exists() {
            return Ok(());
        }
        // As on a host whose disk was full: what is in the cache and what is in the image differ.
        let read_only = |at| mount::of(at).is_some_and(|about| about.read_only);
        if disk::is_mount_point(&at) && (read_only(&at) || self.is_broken(uid, &at)) {
            release(&image, &at)?;
            check(&image, superblock(&image)?.has_journal, &lock(&image)?)?;
        }
        self.mount_at(&image, &at)
    }

    /// Whether writes to it were lost. That costs a flush of the disk, so it is asked once, and again after the host
    /// was nearly full.
    fn is_broken(&self, uid: Uuid, at: &Path) -> bool {
        if !self.note_room() && self.sound().contains(&uid) {
            return false;
        }
        let broken = disk::sync(at).is_err();
        if !broken {
            self.sound().insert(uid);
        }
        broken
    }

    /// Looks at the room that images have to grow into. Returns whether it is so little that writes may be lost.
    pub fn note_room(&self) -> bool {
        let low = disk::space(&self.root).is_ok_and(|space| space.free_bytes < LOW_BYTES);
        if low {
            self.sound().clear();
        }
        low
    }

    pub(crate) fn sound(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.sound.lock().expect("nobody panics while noting what is sound")
    }

    pub(crate) fn mount_at(&self, image: &Path, at: &Path) -> Result<(), SysError> {
        if disk::is_mount_point(at) {
            return Ok(());
        }
        self.mount_point(at)?;
        self::mount(image, at)
    }

    pub(crate) fn ensure_image(&self, uid: Uuid, ask: &Ask) -> Result<(), SysError> {
        let image = self.image(uid);
        if !image.exists() {
            let unfinished = self.promised_image(&image, ask.bytes)?;
            rename(&unfinished, &image)?;
            return self.mount(uid);
        }
        self.mount(uid)?;
        let has = bytes(&image)?;
        // Without the privilege to do so, a copy is how it grows.
        if has > ask.bytes || has < ask.bytes && self.grow_image(uid, ask.bytes).is_err() {
            self.copy_image(uid, ask)?;
        }
        self.mount(uid)
    }

    /// A new one that has its promise, and not yet its name.
    fn promised_image(&self, image: &Path, bytes: u64) -> Result<PathBuf, SysError> {
        let unfinished = image.with_extension(UNFINISHED);
        let _one = self.promises.lock().expect("nobody panics while promising room");
        fsops::remove(&unfinished)?;
        self.check_promises(&unfinished, bytes)?;
        disk::copy_sparse(&template(&self.root, bytes)?, &unfinished)?;
        Ok(unfinished)
    }

    /// Only the kernel's administrator may make one larger that is in use, and nobody can make it smaller.
    pub(crate) fn grow_image(&self, uid: Uuid, bytes: u64) -> Result<(), SysError> {
        let image = self.image(uid);
        let failed = |source| SysError::io("grow", &image, source);
        if self::bytes(&image)? > bytes {
            let why = "an image in use can only grow; it shrinks at the next start";
            return Err(failed(io::Error::other(why)));
        }
        let _one = self.promises.lock().expect("nobody panics while promising room");
        self.check_promises(&image, bytes)?;
        let file = File::options().write(true).open(&image).map_err(failed)?;
        loopback::grow(&file, &self.mount_of(uid), bytes)
    }

    /// Copies the files of an image that is mounted into one of another size, and lets that take its place.
    fn copy_image(&self, uid: Uuid, &Ask { bytes, owner }: &Ask) -> Result<(), SysError> {
        let (image, at) = (self.image(uid), self.mount_of(uid));
        let beside = self.mounts.join(format!("{uid}.{UNFINISHED}"));
        refuse_below(disk::space(&at)?.used_bytes(), bytes)?;
        // Of an attempt before this one.
        unmount(&beside)?;
        let unfinished = self.promised_image(&image, bytes)?;
        let copied = self.mount_at(&unfinished, &beside).and_then(|()| {
            fsops::copy(&at.join("files"), &beside.join("files"), Some((owner, owner)))?;
            disk::sync(&beside)
        });
        let closed = release(&unfinished, &beside);
        self.remove_mount_point(&beside)?;
        if let Err(error) = copied.and(closed) {
            fsops::remove(&unfinished)?;
            let call = format!("limit the disk to {} MiB: {}", bytes / MIB, error.call);
            return Err(SysError { call, ..error });
        }
        unmount(&at)?;
        rename(&unfinished, &image)
    }

    /// An image whose host runs full loses what was written to it: so no more is promised than is there.
    fn check_promises(&self, image: &Path, bytes: u64) -> Result<(), SysError> {
        let (mut others, mut own) = (0, bytes);
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = entry.metadata() else { continue };
            if path == image {
                own = bytes.saturating_sub(disk::allocated_bytes(&meta));
            } else if meta.is_file() {
                others += meta.len().saturating_sub(disk::allocated_bytes(&meta));
            }
        }
        let free = disk::space(&self.root)?.free_bytes;
        if own.saturating_add(others).saturating_add(self.reserve_bytes) <= free {
            return Ok(());
        }
        let why = format!(
            "the host has {} MiB free; sandboxes may still take {} MiB and {} MiB stay free (disk.reserve_mb)",
            free / MIB,
            others / MIB,
            self.reserve_bytes / MIB,
        );
        Err(SysError {
            call: format!("promise {} MiB of disk", bytes / MIB),
            source: io::Error::other(why),
        })
    }
}

fn trial_image(root: &Path) -> PathBuf {
    root.join(format!("{TRIAL}.img"))
}

/// Makes one, mounts it, writes to it, and takes it away again.
fn works(root: &Path, at: &Path) -> Result<(), SysError> {
    let image = trial_image(root);
    let tried = template(root, volume::BYTES_MIN)
        .and_then(|template| disk::copy_sparse(&template, &image))
        .and_then(|()| self::mount(&image, at))
        .and_then(|()| {
            fs::write(at.join("file"), "x").map_err(|source| SysError::io("write", at, source))
        });
    let _ = unmount(at);
    let _ = fs::remove_file(&image);
    tried
}

fn template(root: &Path, bytes: u64) -> Result<PathBuf, SysError> {
    let dir = root.join(TEMPLATES);
    // Root mounts what lies in there.
    own::claim_private(&dir)?;
    let template = dir.join(format!("ext4-{}.img", bytes / MIB));
    if template.exists() {
        volume::touch(&template);
        return Ok(template);
    }
    forget_oldest(&dir)?;
    let unfinished = template.with_extension(UNFINISHED);
    let failed = |source| SysError::io("make", &unfinished, source);
    let options =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
    let file = options.map_err(failed)?;
    file.set_len(bytes).map_err(failed)?;
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
    fsops::run(command, PACKAGE)?;
    file.sync_all().map_err(failed)?;
    rename(&unfinished, &template)?;
    Ok(template)
}

/// Has room for one more.
fn forget_oldest(templates: &Path) -> Result<(), SysError> {
    let used_last =
        |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
    let entries = fs::read_dir(templates).into_iter().flatten().flatten();
    let mut known: Vec<_> = entries.filter_map(used_last).collect();
    known.sort_unstable();
    let too_many = (known.len() + 1).saturating_sub(TEMPLATE_COUNT_MAX);
    known.iter().take(too_many).try_for_each(|(_, path)| fsops::remove(path))
}

fn mount(image: &Path, at: &Path) -> Result<(), SysError> {
    let lock = lock(image)?;
    let superblock = superblock(image)?;
    if loopback::attached(image).is_none() && !superblock.is_sound() {
        check(image, superblock.has_journal, &lock)?;
    }
    let device = loopback::attach(image)?;
    mount::ext4(&device.path, at)
}

/// Mends what an unclean end has left. With a journal, that loses nothing, or it is left to a person; without one,
/// to lose what was being written is what such an end means.
fn check(image: &Path, has_journal: bool, lock: &File) -> Result<(), SysError> {
    let failed = |source| SysError::io("check", image, source);
    let mut command = Command::new("e2fsck");
    command.args(["-f", if has_journal { "-p" } else { "-y" }]).arg(image);
    // The program keeps the lock, should it outlive us.
    let held = Stdio::from(lock.try_clone().map_err(failed)?);
    fsops::run_to(command, PACKAGE, MENDED, held).map(drop).map_err(|error| {
        let hint = format!("hint: `e2fsck -f -y {}` mends what it can", image.display());
        SysError { call: format!("{}; {hint}", error.call), ..error }
    })
}

/// Waits for whoever checks the image: perhaps a program that a daemon before this one began.
fn lock(image: &Path) -> Result<File, SysError> {
    let failed = |source| SysError::io("lock", image, source);
    let file = File::open(image).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Takes a mount away, and the device behind it. Nothing of ours runs in it; what somebody else still has open
/// keeps it until then.
pub(crate) fn unmount(at: &Path) -> Result<(), SysError> {
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

/// The same, to the end: what is in the image now is all that will be.
fn release(image: &Path, at: &Path) -> Result<(), SysError> {
    unmount(at)?;
    for _ in 0..RELEASE_TRIES {
        if loopback::attached(image).is_none() {
            return Ok(());
        }
        thread::sleep(RELEASE_PAUSE);
    }
    let source = io::ErrorKind::ResourceBusy.into();
    Err(SysError::io("unmount", image, source))
}

/// How large an image is, and its file system with it: one that has not grown to the end is as small as before.
pub(crate) fn bytes(image: &Path) -> Result<u64, SysError> {
    // Of one in use, the device has what is not in the file yet.
    let number = loopback::attached(image);
    let device = number.map(loopback::path_of);
    let length = fs::metadata(image).map_err(|source| SysError::io("stat", image, source))?.len();
    let superblock = superblock(device.as_deref().unwrap_or(image))?;
    Ok(superblock.within(length))
}

/// Of one that is mounted at `at`.
pub(crate) fn bytes_at(at: &Path) -> Option<u64> {
    let device = disk::device(at).filter(|_| disk::is_mount_point(at))?;
    let number = u32::try_from(device.1).ok().filter(|_| device.0 == loopback::MAJOR)?;
    let superblock = superblock(&loopback::path_of(number)).ok()?;
    Some(superblock.within(disk::device_bytes(device)?))
}

/// What a file system says of itself.
#[derive(Debug, Clone, Copy)]
struct Superblock {
    bytes: u64,
    state: u16,
    has_journal: bool,
}

impl Superblock {
    fn is_sound(self) -> bool {
        self.state & CLEAN != 0 && self.state & ERRORS == 0
    }

    /// How much of so many bytes it takes: all of them, but for a last group that is of no use.
    fn within(self, length: u64) -> u64 {
        let left = length.saturating_sub(self.bytes);
        let is_whole =
            left == 0 || self.bytes.is_multiple_of(GROUP_BYTES) && left < GROUP_TABLES_BYTES;
        if is_whole { length } else { self.bytes }
    }
}

fn superblock(path: &Path) -> Result<Superblock, SysError> {
    let failed = |source| SysError::io("read", path, source);
    let mut block = [0; 1024];
    let file = File::open(path).map_err(failed)?;
    file.read_exact_at(&mut block, SUPERBLOCK).map_err(failed)?;
    let short = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let long = |at: usize| u64::from(short(at)) | u64::from(short(at + 2)) << 16;
    if short(0x38) != MAGIC {
        return Err(failed(io::Error::other("it is no ext4")));
    }
    let blocks = long(0x4) | long(0x150) << 32;
    Ok(Superblock {
        bytes: blocks << (10 + long(0x18).min(6)),
        state: short(0x3A),
        has_journal: short(0x5C) & HAS_JOURNAL != 0,
    })
}
