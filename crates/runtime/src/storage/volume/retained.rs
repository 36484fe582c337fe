//! Volumes that wait for their sandbox to be declared again. They keep nobody's limit meanwhile, and are counted
//! as nobody's.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{Kind, Volume, Volumes, btrfs, image, rename};
use crate::storage::fsops;
use sodium_sys::SysError;
use sodium_sys::disk::quota;

/// What something that was put aside is called besides.
const IMAGE: &str = "img";
const TREE: &str = "volume";

impl Volumes {
    /// Whether a volume was put aside as this.
    pub fn is_aside(&self, path: &Path) -> bool {
        [IMAGE, TREE].iter().any(|kind| extended(path, kind).exists())
    }

    /// Moves a volume to `to`, with an extension that says what it is. False: there is none.
    pub fn put_aside(&self, uid: Uuid, to: &Path) -> Result<bool, SysError> {
        self.drop_memory(uid)?;
        let Some(Volume { dir, kind }) = self.find(uid) else { return Ok(false) };
        let (from, to) = match kind {
            Kind::Image => (self.image(uid), extended(to, IMAGE)),
            Kind::Quota | Kind::Btrfs | Kind::Memory => (dir.clone(), extended(to, TREE)),
        };
        match kind {
            Kind::Image => {
                image::unmount(&dir)?;
                self.remove_mount_point(&dir)?;
            }
            // The number is another sandbox's next.
            Kind::Quota => self.leave_project(&dir)?,
            Kind::Btrfs | Kind::Memory => (),
        }
        touch(&from);
        rename(&from, &to)?;
        Ok(true)
    }

    /// A tree that is in no project any more, whose limit is gone with it.
    fn leave_project(&self, dir: &Path) -> Result<(), SysError> {
        let project = quota::project_of(dir)?;
        if project != 0 && quota::is_enforced(dir) {
            quota::limit(dir, project, 0, 0)?;
            // The directory itself is last, so that who repeats this knows the number.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                fsops::set_project(&entry.path(), 0)?;
            }
            quota::set_project(dir, 0)?;
        }
        Ok(())
    }

    /// Takes back what was put aside, for another owner. False: there is none. It has its place only when all of it
    /// belongs to the new owner.
    pub fn take_back(&self, uid: Uuid, from: &Path, owner: u32) -> Result<bool, SysError> {
        let (image, dir) = (extended(from, IMAGE), extended(from, TREE));
        if image.exists() {
            let at = self.mount_of(uid);
            self.mount_at(&image, &at)?;
            give(&at, owner)?;
            rename(&image, &self.image(uid))?;
        } else if dir.exists() {
            if quota::is_enforced(&dir) {
                fsops::set_project(&dir, owner)?;
            }
            give(&dir, owner)?;
            rename(&dir, &self.dir_of(uid))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

fn give(volume: &Path, owner: u32) -> Result<(), SysError> {
    let files = volume.join("files");
    if files.exists() { fsops::give(&files, owner) } else { Ok(()) }
}

fn extended(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

/// What something was put aside as, which is called `name` there.
pub(crate) fn aside_name(name: &str) -> &str {
    let plain = [IMAGE, TREE].iter().find_map(|kind| name.strip_suffix(*kind)?.strip_suffix('.'));
    plain.unwrap_or(name)
}

/// Removes what was put aside, whatever it is.
pub(crate) fn remove_aside(path: &Path) -> Result<(), SysError> {
    if btrfs::is_subvolume(path) { btrfs::remove(path) } else { fsops::remove(path) }
}

/// Its age is how long it has been aside.
pub(crate) fn touch(path: &Path) {
    let now =
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(sodium_sys::clock::wall_ms());
    let _ = fs::File::open(path).and_then(|file| file.set_modified(now));
}
