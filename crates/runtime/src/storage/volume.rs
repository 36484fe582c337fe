//! Volumes: a disk of its own for each sandbox that has a limit on it, which the kernel keeps.
//!
//! Which mechanism serves is found out by trying, once per daemon; a volume that is there keeps its own.
//! Where none works, a sandbox's files lie in a plain directory and are counted now and then.
//!
//! ```text
//!   SANDBOXES/.disk/UID/{files,tmp}       a project with a quota, or a btrfs subvolume
//!   SANDBOXES/.disk/UID.img               an image, and where it is mounted:
//!   SANDBOXES/.mounts/UID/{files,tmp}
//!   SANDBOXES/.mounts/UID.memory/{..}     in memory, for as long as an instance runs
//! ```

mod btrfs;
mod image;
mod retained;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use uuid::Uuid;

pub(crate) use self::retained::{aside_name, remove_aside, touch};
use crate::storage::fsops;
use sodium_model::InUse;
use sodium_model::disk::DiskChoice;
use sodium_sys::disk::{self, Space, quota};
use sodium_sys::{SysError, mount, own};

/// So many bytes of a limit allow one inode: ext4's own default.
const BYTES_PER_INODE: u64 = 16 * 1024;
/// A program's modules are many small files.
const INODES_MIN: u64 = 1024;
/// What all mounts lie in.
const MOUNTS: &str = ".mounts";
/// Volumes are whole multiples of this.
pub const MIB: u64 = 1 << 20;
/// The smallest: less than this, a file system has no room for anything but itself.
pub const BYTES_MIN: u64 = MIB;

/// What keeps the limit of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Quota,
    Btrfs,
    Image,
    Memory,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub dir: PathBuf,
    pub kind: Kind,
}

/// What is wanted of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub bytes: u64,
    /// Who its files belong to, and under which number it is counted.
    pub owner: u32,
}

/// All volumes of this daemon.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    /// Everything that is mounted lies in here.
    mounts: PathBuf,
    choice: DiskChoice,
    /// Left free on the host, whatever images may still grow to.
    reserve_bytes: u64,
    /// What works here; or why nothing does.
    found: OnceLock<Result<Kind, String>>,
    /// One image is promised its room at a time, and one template made.
    promises: Mutex<()>,
    /// Images to which no write was lost so far.
    sound: Mutex<HashSet<Uuid>>,
    /// Whether the directory of all mounts is one itself, which it is while there are any.
    shared: Mutex<bool>,
}

/// How many inodes a limit in bytes allows.
pub fn inodes_of(bytes: u64) -> u64 {
    (bytes / BYTES_PER_INODE).max(INODES_MIN)
}

impl Kind {
    /// For the ledger.
    pub fn mechanism(self) -> &'static str {
        match self {
            Self::Quota => "project quota",
            Self::Btrfs => "btrfs qgroup",
            Self::Image => "ext4 image on a loop device",
            Self::Memory => "tmpfs",
        }
    }
}

impl Volume {
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    pub fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Empties what is meant to last as long as one instance.
    pub fn renew_tmp(&self, ids: Option<(u32, u32)>) -> Result<(), SysError> {
        // A full volume has no room for a new one, not even after the old one is gone.
        if fs::symlink_metadata(self.tmp()).is_err() {
            return fsops::make(&self.tmp(), ids);
        }
        fsops::clear(&self.tmp())?;
        fsops::own(&self.tmp(), ids)
    }

    /// The limit in bytes, as the kernel has it.
    pub fn read_back(&self, owner: u32) -> Option<u64> {
        match self.kind {
            Kind::Quota => quota::project(&self.dir, owner).ok().map(|project| project.bytes_max),
            Kind::Btrfs => btrfs::usage(&self.dir).ok().and_then(|usage| usage.bytes_max),
            Kind::Image => image::bytes_at(&self.dir),
            Kind::Memory => disk::space(&self.dir).ok().map(|space| space.total_bytes),
        }
    }

    /// What it holds and may hold.
    pub fn space(&self, owner: u32) -> Option<Space> {
        match self.kind {
            Kind::Image | Kind::Memory if disk::is_mount_point(&self.dir) => {
                disk::space(&self.dir).ok()
            }
            Kind::Image | Kind::Memory => None,
            Kind::Quota => {
                let project = quota::project(&self.dir, owner).ok()?;
                let free = |max: u64, used: u64| max.saturating_sub(used);
                Some(Space {
                    total_bytes: project.bytes_max,
                    free_bytes: free(project.bytes_max, project.used_bytes),
                    total_inodes: project.inodes_max,
                    free_inodes: free(project.inodes_max, project.used_inodes),
                })
            }
            Kind::Btrfs => btrfs::usage(&self.dir).ok().map(|usage| usage.space()),
        }
    }
}

impl Volumes {
    pub fn open(
        sandboxes: &Path,
        as_root: bool,
        choice: DiskChoice,
        reserve_bytes: u64,
    ) -> Result<Self, SysError> {
        let volumes = Self::of(sandboxes, as_root, choice, reserve_bytes);
        volumes.claim()?;
        Ok(volumes)
    }

    pub(crate) fn of(
        sandboxes: &Path,
        as_root: bool,
        choice: DiskChoice,
        reserve_bytes: u64,
    ) -> Self {
        let (root, mounts) = (sandboxes.join(".disk"), sandboxes.join(MOUNTS));
        let found = OnceLock::new();
        if choice == DiskChoice::Polled {
            let _ = found.set(Err("\"disk.mechanism\" in config.json says polled".to_owned()));
        } else if !as_root {
            let _ = found.set(Err("only root can limit a disk".to_owned()));
        }
        Self {
            root,
            mounts,
            choice,
            reserve_bytes,
            found,
            promises: Mutex::default(),
            sound: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    /// Has the directories be there in which they lie, and be ours.
    pub(crate) fn claim(&self) -> Result<(), SysError> {
        own::claim_private(&self.root)?;
        own::claim_private(&self.mounts)
    }

    /// What new volumes are; or why the kernel keeps no limit here.
    pub fn kind(&self) -> Result<Kind, String> {
        self.found.get_or_init(|| self.find_out()).clone()
    }

    /// Whether what can have no volume is started without one: not where an operator has named what keeps disks, and
    /// that works here.
    pub fn may_be_counted(&self) -> bool {
        self.choice == DiskChoice::Auto || self.kind().is_err()
    }

    fn find_out(&self) -> Result<Kind, String> {
        let mut whys = Vec::new();
        for (choice, kind) in [
            (DiskChoice::Quota, Kind::Quota),
            (DiskChoice::Btrfs, Kind::Btrfs),
            (DiskChoice::Image, Kind::Image),
        ] {
            if self.choice != DiskChoice::Auto && self.choice != choice {
                continue;
            }
            match self.works(kind) {
                Ok(()) => return Ok(kind),
                Err(why) => whys.push(format!("{}: {why}", kind.mechanism())),
            }
        }
        Err(whys.join("; "))
    }

    /// Makes a directory to mount something at.
    fn mount_point(&self, at: &Path) -> Result<(), SysError> {
        let mut shared = self.shared.lock().expect("nobody panics while mounting");
        if !*shared {
            mount::ensure_shared(&self.mounts)?;
            *shared = true;
        }
        make_dir(at)
    }

    /// Removes one again, and with the last of them every trace of mounts.
    fn remove_mount_point(&self, at: &Path) -> Result<(), SysError> {
        let mut shared = self.shared.lock().expect("nobody panics while mounting");
        remove_dir(at)?;
        if fs::read_dir(&self.mounts).is_ok_and(|mut left| left.next().is_none()) {
            *shared = false;
            if mount::is_at(&self.mounts) {
                mount::unmount(&self.mounts, true)?;
            }
        }
        Ok(())
    }

    /// Tries it for real.
    fn works(&self, kind: Kind) -> Result<(), String> {
        let sandboxes = self.root.parent().unwrap_or(&self.root);
        match kind {
            Kind::Quota if !quota::is_enforced(&self.root) => {
                Err("the file system keeps none (mount it with prjquota)".to_owned())
            }
            // Whoever has a file there may have it counted as a sandbox's.
            Kind::Quota if self.choice == DiskChoice::Auto && !mount::is_ours_alone(sandboxes) => {
                Err("others may have files on the file system (mount one at \"sandboxes_path\", \
                     or close its top to them: chmod 700)"
                    .to_owned())
            }
            Kind::Quota => Ok(()),
            Kind::Btrfs => btrfs::works(&self.root),
            Kind::Image => self.image_works().map_err(|error| sodium_sys::error::chain(&error)),
            Kind::Memory => Ok(()),
        }
    }

    /// Where all that is mounted is.
    pub fn mounts(&self) -> PathBuf {
        self.mounts.clone()
    }

    fn dir_of(&self, uid: Uuid) -> PathBuf {
        self.root.join(uid.to_string())
    }

    fn mount_of(&self, uid: Uuid) -> PathBuf {
        self.mounts.join(uid.to_string())
    }

    fn image(&self, uid: Uuid) -> PathBuf {
        self.root.join(format!("{uid}.img"))
    }

    fn memory(&self, uid: Uuid) -> PathBuf {
        self.mounts.join(format!("{uid}.memory"))
    }

    /// The volume of a sandbox, if it has one.
    pub fn find(&self, uid: Uuid) -> Option<Volume> {
        let memory = self.memory(uid);
        if disk::is_mount_point(&memory) {
            return Some(Volume { dir: memory, kind: Kind::Memory });
        }
        let dir = self.dir_of(uid);
        if self.image(uid).exists() {
            return Some(Volume { dir: self.mount_of(uid), kind: Kind::Image });
        }
        fs::symlink_metadata(&dir).ok()?;
        let kind = if btrfs::is_subvolume(&dir) { Kind::Btrfs } else { Kind::Quota };
        Some(Volume { dir, kind })
    }

    /// What a volume holds and may hold, if that is told by one look at it.
    pub fn cheap_space(&self, uid: Uuid, owner: u32) -> Option<Space> {
        let volume = self.find(uid).filter(|volume| volume.kind != Kind::Btrfs)?;
        volume.space(owner)
    }

    /// What a volume holds, and whether it can be changed while something runs in it.
    pub fn in_use(&self, uid: Uuid, owner: u32) -> InUse {
        let Some(volume) = self.find(uid) else { return InUse::default() };
        InUse {
            memory_bytes: 0,
            disk_bytes: volume.space(owner).unwrap_or_default().used_bytes(),
            disk_grows: volume.kind != Kind::Image || sodium_sys::is_resource_admin(),
            disk_shrinks: volume.kind != Kind::Image,
        }
    }

    /// A new volume, or the one that is there with this limit. Nothing runs in it.
    pub fn ensure(&self, uid: Uuid, ask: &Ask) -> Result<Volume, SysError> {
        let kind = match self.find(uid) {
            Some(volume) => volume.kind,
            None => self.kind().map_err(|why| SysError {
                call: "limit the disk".to_owned(),
                source: io::Error::other(why),
            })?,
        };
        let dir = self.dir_of(uid);
        match kind {
            Kind::Quota => self.ensure_project(&dir, ask)?,
            Kind::Btrfs => btrfs::ensure(&dir, ask.bytes)?,
            Kind::Image | Kind::Memory => {
                self.ensure_image(uid, ask)?;
                return Ok(Volume { dir: self.mount_of(uid), kind: Kind::Image });
            }
        }
        Ok(Volume { dir, kind })
    }

    /// One in memory, with nothing in it.
    pub fn fresh_memory(&self, uid: Uuid, bytes: u64) -> Result<Volume, SysError> {
        self.drop_memory(uid)?;
        let dir = self.memory(uid);
        self.mount_point(&dir)?;
        // Of tmpfs, 0 is no limit.
        let inodes = if bytes == 0 { 0 } else { inodes_of(bytes) };
        mount::tmpfs(&dir, bytes, inodes)?;
        Ok(Volume { dir, kind: Kind::Memory })
    }

    /// Ends one in memory. Repeating it is harmless.
    pub fn drop_memory(&self, uid: Uuid) -> Result<(), SysError> {
        let dir = self.memory(uid);
        if !dir.exists() {
            return Ok(());
        }
        if disk::is_mount_point(&dir) {
            mount::unmount(&dir, true)?;
        }
        self.remove_mount_point(&dir)
    }

    fn ensure_project(&self, dir: &Path, ask: &Ask) -> Result<(), SysError> {
        if !dir.exists() {
            let unfinished = dir.with_extension("new");
            fsops::remove(&unfinished)?;
            make_dir(&unfinished)?;
            quota::set_project(&unfinished, ask.owner)?;
            quota::limit(dir.parent().unwrap_or(dir), ask.owner, ask.bytes, inodes_of(ask.bytes))?;
            return rename(&unfinished, dir);
        }
        if quota::project_of(dir)? != ask.owner {
            fsops::set_project(dir, ask.owner)?;
        }
        let held = quota::project(dir, ask.owner)?.used_bytes;
        refuse_below(held, ask.bytes)?;
        quota::limit(dir, ask.owner, ask.bytes, inodes_of(ask.bytes))
    }

    /// Gives a volume another limit while something runs in it. An error says why that has to wait.
    pub fn adjust(&self, uid: Uuid, volume: &Volume, ask: &Ask) -> Result<(), SysError> {
        let held = volume.space(ask.owner).unwrap_or_default().used_bytes();
        match volume.kind {
            Kind::Quota => self.ensure_project(&volume.dir, ask),
            Kind::Btrfs => {
                refuse_below(held, ask.bytes).and_then(|()| btrfs::limit(&volume.dir, ask.bytes))
            }
            Kind::Memory => refuse_below(held, ask.bytes)
                .and_then(|()| mount::resize_tmpfs(&volume.dir, ask.bytes, inodes_of(ask.bytes))),
            Kind::Image => self.grow_image(uid, ask.bytes),
        }
    }

    /// Removes a volume and what is in it, and one that was never finished. Repeating it is harmless.
    pub fn remove(&self, uid: Uuid) -> Result<(), SysError> {
        self.drop_memory(uid)?;
        self.sound().remove(&uid);
        let (dir, unfinished) = (self.dir_of(uid), self.dir_of(uid).with_extension("new"));
        // Mounted or not, and whether or not there is an image: what is begun is ended.
        let beside = self.mounts.join(format!("{uid}.{}", image::UNFINISHED));
        for at in [self.mount_of(uid), beside] {
            image::unmount(&at)?;
            self.remove_mount_point(&at)?;
        }
        for dir in [&dir, &unfinished] {
            self.remove_limit(dir)?;
            retained::remove_aside(dir)?;
        }
        fsops::remove(&self.image(uid))
    }

    /// A number without files must not have a limit either: it is another sandbox's next.
    fn remove_limit(&self, dir: &Path) -> Result<(), SysError> {
        if !dir.is_dir() || btrfs::is_subvolume(dir) || !quota::is_enforced(dir) {
            return Ok(());
        }
        match quota::project_of(dir)? {
            0 => Ok(()),
            project => quota::limit(dir, project, 0, 0),
        }
    }
}

/// Takes away all that is mounted for volumes below `sandboxes`, for whoever is about to remove it.
pub fn unmount_all(sandboxes: &Path) {
    for at in mount::below(&sandboxes.join(MOUNTS)) {
        let _ =
            if disk::is_mount_point(&at) { image::unmount(&at) } else { mount::unmount(&at, true) };
    }
}

fn refuse_below(held: u64, bytes: u64) -> Result<(), SysError> {
    if held <= bytes {
        return Ok(());
    }
    let why = format!("it holds {} MiB", held.div_ceil(MIB));
    Err(SysError {
        call: format!("limit the disk to {} MiB", bytes / MIB),
        source: io::Error::other(why),
    })
}

fn rename(from: &Path, to: &Path) -> Result<(), SysError> {
    fs::rename(from, to).map_err(|source| SysError::io("rename", from, source))
}

fn make_dir(dir: &Path) -> Result<(), SysError> {
    match fs::DirBuilder::new().mode(fsops::MODE).create(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(SysError::io("mkdir", dir, source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> Result<(), SysError> {
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SysError::io("rmdir", dir, source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
