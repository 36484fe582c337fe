//! Workspaces: a sandbox's own persistent files, in a directory named after its uid.
//!
//! The tenant may write anything into its workspace, so the daemon opens nothing in it by path: see
//! [`crate::sys::path::Tree`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::SandboxName;
use crate::sys::{SysError, path};

/// Where the workspaces of removed files wait for their undo period to end.
const ASIDE: &str = ".removed";

/// All workspaces of this daemon.
#[derive(Debug, Clone)]
pub struct Workspaces {
    root: PathBuf,
    /// Whether each gets an owner of its own.
    as_root: bool,
}

impl Workspaces {
    /// Makes the directory they lie in.
    pub fn open(root: &Path, as_root: bool) -> Result<Self, SysError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(root);
        made.map_err(|source| SysError::io("mkdir", root, source))?;
        Ok(Self { root: root.to_owned(), as_root })
    }

    pub fn path(&self, uid: Uuid) -> PathBuf {
        self.root.join(uid.to_string())
    }

    /// Makes the workspace if it is not there, and lays the files into it: the image's only into a
    /// new one, the spec's always.
    pub fn prepare(
        &self,
        uid: Uuid,
        host_uid: u32,
        image_files: &BTreeMap<String, String>,
        files: &BTreeMap<String, String>,
    ) -> Result<PathBuf, SysError> {
        let dir = self.path(uid);
        let ids = self.as_root.then_some((host_uid, host_uid));
        if fs::symlink_metadata(&dir).is_err() {
            self.create(&dir, ids, image_files)?;
        } else if let Some((owner, group)) = ids
            && fs::symlink_metadata(&dir).is_ok_and(|meta| meta.uid() != owner)
        {
            path::give(&dir, owner, group)?;
        }
        if !files.is_empty() {
            lay(&dir, ids, files)?;
        }
        Ok(dir)
    }

    /// Made under another name first, so that a workspace is new exactly once.
    fn create(
        &self,
        dir: &Path,
        ids: Option<(u32, u32)>,
        files: &BTreeMap<String, String>,
    ) -> Result<(), SysError> {
        let unfinished = dir.with_extension("new");
        remove_tree(&unfinished)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .map_err(|source| SysError::io("mkdir", &unfinished, source))?;
        if let Some((uid, gid)) = ids {
            path::give(&unfinished, uid, gid)?;
        }
        lay(&unfinished, ids, files)?;
        fs::rename(&unfinished, dir).map_err(|source| SysError::io("rename", dir, source))
    }

    pub fn remove(&self, uid: Uuid) -> Result<(), SysError> {
        remove_tree(&self.path(uid).with_extension("new"))?;
        remove_tree(&self.path(uid))
    }

    /// Puts a workspace aside under the sandbox's name, to be found again.
    pub fn put_aside(&self, uid: Uuid, name: &SandboxName) -> Result<(), SysError> {
        let from = self.path(uid);
        if fs::symlink_metadata(&from).is_err() {
            return Ok(());
        }
        let to = self.aside()?.join(name.as_str());
        remove_tree(&to)?;
        move_aside(&from, &to)
    }

    fn aside(&self) -> Result<PathBuf, SysError> {
        let aside = self.root.join(ASIDE);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside);
        made.map_err(|source| SysError::io("mkdir", &aside, source))?;
        Ok(aside)
    }

    /// Puts another tree in place of a workspace, which is put aside under a label that no sandbox can
    /// have as its name. Repeated, it is the tree of before that goes, not what was put aside.
    pub fn replace(
        &self,
        uid: Uuid,
        host_uid: u32,
        fresh: &Path,
        label: &str,
    ) -> Result<(), SysError> {
        if self.as_root {
            give_tree(fresh, host_uid)?;
        }
        let (current, aside) = (self.path(uid), self.aside()?.join(label));
        if fs::symlink_metadata(&aside).is_ok() {
            remove_tree(&current)?;
        } else if fs::symlink_metadata(&current).is_ok() {
            move_aside(&current, &aside)?;
        }
        fs::rename(fresh, &current).map_err(|source| SysError::io("rename", fresh, source))
    }

    /// Takes a workspace back that was put aside under this name. Returns whether there was one.
    pub fn take_back(
        &self,
        uid: Uuid,
        host_uid: u32,
        name: &SandboxName,
    ) -> Result<bool, SysError> {
        let (from, to) = (self.root.join(ASIDE).join(name.as_str()), self.path(uid));
        if fs::symlink_metadata(&from).is_err() || fs::symlink_metadata(&to).is_ok() {
            return Ok(false);
        }
        if self.as_root {
            give_tree(&from, host_uid)?;
        }
        fs::rename(&from, &to).map_err(|source| SysError::io("rename", &from, source))?;
        Ok(true)
    }

    /// Removes what was put aside longer ago than `keep_ms`.
    pub fn expire(&self, now_ms: u64, keep_ms: u64) -> Result<(), SysError> {
        for entry in fs::read_dir(self.root.join(ASIDE)).into_iter().flatten().flatten() {
            let put_aside = entry.metadata().map_or(0, |meta| meta.mtime().unsigned_abs() * 1000);
            if put_aside.saturating_add(keep_ms) < now_ms {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn move_aside(from: &Path, to: &Path) -> Result<(), SysError> {
    // The age of what lies there is the age of this directory entry's target.
    let _ = fs::File::open(from).and_then(|dir| dir.set_modified(file_time_now()));
    fs::rename(from, to).map_err(|source| SysError::io("rename", from, source))
}

fn file_time_now() -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_millis(crate::sys::clock::wall_ms())
}

fn lay(
    dir: &Path,
    ids: Option<(u32, u32)>,
    files: &BTreeMap<String, String>,
) -> Result<(), SysError> {
    let tree = path::Tree::open(dir, ids)?;
    for (name, content) in files {
        tree.ensure_file(name, content.as_bytes())?;
    }
    Ok(())
}

/// std removes by directory descriptors and follows no symlink, so that a tenant cannot lead it away.
fn remove_tree(path: &Path) -> Result<(), SysError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SysError::io("remove", path, source)),
    }
}

/// Gives everything below `dir` to its new owner. Nothing runs in it now, so nothing moves under us;
/// symlinks themselves are given, never what they lead to.
fn give_tree(dir: &Path, uid: u32) -> Result<(), SysError> {
    path::give(dir, uid, uid)?;
    let entries = fs::read_dir(dir).map_err(|source| SysError::io("read", dir, source))?;
    for entry in entries.flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir { give_tree(&entry.path(), uid)? } else { path::give(&entry.path(), uid, uid)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(content: &str) -> BTreeMap<String, String> {
        [("main.sh".to_owned(), content.to_owned())].into()
    }

    #[test]
    fn an_images_files_are_laid_once_and_a_specs_always() {
        let dir = tempfile::tempdir().unwrap();
        let spaces = Workspaces::open(dir.path(), false).unwrap();
        let uid = Uuid::now_v7();
        let space = spaces.prepare(uid, 0, &files("image"), &BTreeMap::new()).unwrap();
        let read = || fs::read_to_string(space.join("main.sh")).unwrap();
        assert_eq!(read(), "image");
        fs::write(space.join("main.sh"), "mine").unwrap();
        spaces.prepare(uid, 0, &files("image"), &BTreeMap::new()).unwrap();
        assert_eq!(read(), "mine");
        spaces.prepare(uid, 0, &files("image"), &files("spec")).unwrap();
        assert_eq!(read(), "spec");
    }

    #[test]
    fn a_workspace_put_aside_is_found_again_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let spaces = Workspaces::open(dir.path(), false).unwrap();
        let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
        let name = SandboxName::try_from("web").unwrap();
        spaces.prepare(old, 0, &files("x"), &BTreeMap::new()).unwrap();
        spaces.put_aside(old, &name).unwrap();
        assert!(!spaces.path(old).exists());
        spaces.expire(crate::sys::clock::wall_ms(), 60_000).unwrap();
        assert!(spaces.take_back(new, 0, &name).unwrap());
        assert!(spaces.path(new).join("main.sh").exists());
        spaces.put_aside(new, &name).unwrap();
        spaces.expire(crate::sys::clock::wall_ms() + 120_000, 60_000).unwrap();
        assert!(!spaces.take_back(old, 0, &name).unwrap());
    }
}
