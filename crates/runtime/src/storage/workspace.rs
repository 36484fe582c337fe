//! Workspaces: a sandbox's own persistent files. In a volume of its own where the kernel can limit that, else in
//! a directory named after its uid.
//!
//! The tenant may write anything into its workspace, so the daemon opens nothing in it by path: see
//! [`sodium_sys::path::Tree`].

pub mod retained;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use self::retained::Retained;
use crate::storage::fsops;
use crate::storage::volume::{self, Ask, Volume, Volumes};
use sodium_model::{DiskRules, Owner, SandboxName, Verdict};
use sodium_sys::error::chain;
use sodium_sys::{SysError, disk, own, path};

/// `.disk/UID/files` is as deep as anything of a tenant's begins.
const OWNERS_DEPTH: u32 = 3;

/// All workspaces of this daemon.
#[derive(Debug)]
pub struct Workspaces {
    root: PathBuf,
    /// Whether each gets an owner of its own.
    as_root: bool,
    pub volumes: Volumes,
}

/// What is wanted of a workspace before a start.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub uid: Uuid,
    pub host_uid: u32,
    /// What it may take of the disk; `None`: as much as there is.
    pub bytes: Option<u64>,
    /// It begins empty each time, in memory.
    pub ephemeral: bool,
    /// Laid into one that is new,
    pub image_files: &'a BTreeMap<String, String>,
    /// and into every one.
    pub files: &'a BTreeMap<String, String>,
}

/// Where a sandbox's files are, and what keeps them within their limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub files: PathBuf,
    /// What is to be /tmp, if that is not to be in memory.
    pub tmp: Option<PathBuf>,
    pub kept: Kept,
}

impl Place {
    /// The trees a workload writes to.
    pub fn writable(&self) -> impl Iterator<Item = &Path> {
        [Some(self.files.as_path()), self.tmp.as_deref()].into_iter().flatten()
    }
}

/// What became of the limit on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub mechanism: String,
    /// As the kernel has it.
    pub read_back: Option<u64>,
    pub verdict: Verdict,
    pub reason: String,
}

impl Kept {
    /// There is no limit to be kept.
    pub fn unlimited() -> Self {
        let (mechanism, reason) = (String::new(), String::new());
        Self { mechanism, read_back: None, verdict: Verdict::Enforced, reason }
    }

    fn by(volume: &Volume, bytes: u64, owner: u32) -> Self {
        let read_back = volume.read_back(owner);
        let differs = read_back != Some(bytes);
        let reason = if differs { "the kernel has another value" } else { "" };
        Self {
            mechanism: volume.kind.mechanism().to_owned(),
            read_back,
            verdict: if differs { Verdict::Degraded } else { Verdict::Enforced },
            reason: reason.to_owned(),
        }
    }

    fn polled(why: &str) -> Self {
        Self {
            mechanism: "counted every minute".to_owned(),
            read_back: None,
            verdict: Verdict::Degraded,
            reason: format!("the kernel keeps no limit: {why}"),
        }
    }
}

impl Workspaces {
    /// Makes the directory they lie in, which nobody else may enter: what tenants make of the modes of their own
    /// files is then of no use to anybody else on the host.
    pub fn open(root: &Path, as_root: bool, rules: &DiskRules) -> Result<Self, SysError> {
        own::claim_private(root)?;
        let spaces = Self::of(root, as_root, rules);
        spaces.volumes.claim()?;
        Ok(spaces)
    }

    /// Those that are there, for whoever only looks at them.
    pub fn of(root: &Path, as_root: bool, rules: &DiskRules) -> Self {
        let reserve_bytes = rules.reserve_mb * volume::MIB;
        let volumes = Volumes::of(root, as_root, rules.mechanism, reserve_bytes);
        Self { root: root.to_owned(), as_root, volumes }
    }

    /// Takes away what a daemon that was killed while it tried the disk has left.
    pub fn end_trial(&self) -> Result<(), SysError> {
        if self.as_root { self.volumes.end_trial() } else { Ok(()) }
    }

    /// Where the workspace is now.
    pub fn path(&self, uid: Uuid) -> PathBuf {
        let in_volume = self.volumes.find(uid).map(|volume| volume.files());
        let passing = || Some(self.passing(uid)).filter(|dir| dir.exists());
        in_volume.or_else(passing).unwrap_or_else(|| self.plain(uid))
    }

    /// Where it is without a volume.
    fn plain(&self, uid: Uuid) -> PathBuf {
        self.root.join(uid.to_string())
    }

    /// Ends what lasts no longer than an instance. Repeating it is harmless.
    pub fn drop_passing(&self, uid: Uuid) -> Result<(), SysError> {
        self.volumes.drop_memory(uid)?;
        fsops::remove(&self.passing(uid))
    }

    /// Where one is that lasts no longer than an instance, if it cannot be in memory.
    fn passing(&self, uid: Uuid) -> PathBuf {
        self.plain(uid).with_extension("ephemeral")
    }

    fn ids(&self, host_uid: u32) -> Option<(u32, u32)> {
        self.as_root.then_some((host_uid, host_uid))
    }

    /// Makes the workspace if it is not there, within its limit, and lays the files into it: the image's only
    /// into a new one, the spec's always. Nothing runs in it.
    pub fn prepare(&self, wanted: &Wanted<'_>) -> Result<Place, SysError> {
        let (place, ids) = (self.place(wanted)?, self.ids(wanted.host_uid));
        let dir = &place.files;
        if fs::symlink_metadata(dir).is_err() {
            create(dir, ids, wanted.image_files)?;
        } else if let Some((owner, group)) = ids
            && fs::symlink_metadata(dir).is_ok_and(|meta| meta.uid() != owner)
        {
            path::give(dir, owner, group)?;
        }
        if !wanted.files.is_empty() {
            lay(dir, ids, wanted.files)?;
        }
        Ok(place)
    }

    fn place(&self, wanted: &Wanted<'_>) -> Result<Place, SysError> {
        let plain = self.plain(wanted.uid);
        if wanted.ephemeral && self.as_root {
            // Of tmpfs, 0 is no limit; the memory it takes is the sandbox's own.
            let volume = self.volumes.fresh_memory(wanted.uid, wanted.bytes.unwrap_or(0))?;
            let by = |bytes| Kept::by(&volume, bytes, wanted.host_uid);
            let kept = wanted.bytes.map_or_else(Kept::unlimited, by);
            return self.in_volume(&volume, wanted, kept);
        }
        let passing = self.passing(wanted.uid);
        fsops::remove(&passing)?;
        if wanted.ephemeral {
            let why = self.volumes.kind().err().unwrap_or_default();
            let kept = wanted.bytes.map_or_else(Kept::unlimited, |_| Kept::polled(&why));
            return Ok(Place { files: passing, tmp: None, kept });
        }
        self.volumes.drop_memory(wanted.uid)?;
        let Some(bytes) = wanted.bytes else {
            self.leave_volume(wanted.uid, wanted.host_uid)?;
            return Ok(Place { files: plain, tmp: None, kept: Kept::unlimited() });
        };
        let ask = Ask { bytes, owner: wanted.host_uid };
        let is_new = self.volumes.find(wanted.uid).is_none();
        match self.volumes.ensure(wanted.uid, &ask) {
            Ok(volume) => {
                self.enter_volume(&plain, &volume, wanted.host_uid)?;
                self.in_volume(&volume, wanted, Kept::by(&volume, bytes, wanted.host_uid))
            }
            Err(error) if is_new && self.volumes.may_be_counted() => {
                let kept = Kept::polled(&chain(&error));
                Ok(Place { files: plain, tmp: None, kept })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives what runs another limit, and says what became of that.
    pub fn adjust(&self, uid: Uuid, owner: u32, bytes: Option<u64>) -> Kept {
        let Some(bytes) = bytes else { return Kept::unlimited() };
        let Some(volume) = self.volumes.find(uid) else {
            let why = self.volumes.kind().err();
            return Kept::polled(
                &why.unwrap_or_else(|| "it was started without; restart it".to_owned()),
            );
        };
        let adjusted = if volume.read_back(owner) == Some(bytes) {
            Ok(())
        } else {
            self.volumes.adjust(uid, &volume, &Ask { bytes, owner })
        };
        let kept = Kept::by(&volume, bytes, owner);
        match adjusted {
            Ok(()) => kept,
            Err(error) => Kept { reason: chain(&error), ..kept },
        }
    }

    fn in_volume(
        &self,
        volume: &Volume,
        wanted: &Wanted<'_>,
        kept: Kept,
    ) -> Result<Place, SysError> {
        volume.renew_tmp(self.ids(wanted.host_uid))?;
        Ok(Place { files: volume.files(), tmp: Some(volume.tmp()), kept })
    }

    /// Takes the files of a sandbox that had no volume into its new one.
    fn enter_volume(&self, plain: &Path, volume: &Volume, owner: u32) -> Result<(), SysError> {
        if fs::symlink_metadata(plain).is_err() {
            return Ok(());
        }
        move_tree(plain, &volume.files(), self.ids(owner))
    }

    /// The other way round, since an image cannot be without a limit.
    fn leave_volume(&self, uid: Uuid, owner: u32) -> Result<(), SysError> {
        let Some(volume) = self.volumes.find(uid) else { return Ok(()) };
        // Whole or not at all: until it is, the volume is where the files are.
        let plain = self.plain(uid);
        self.volumes.mount(uid)?;
        if volume.files().exists() {
            move_tree(&volume.files(), &plain, self.ids(owner))?;
        }
        self.volumes.remove(uid)
    }

    pub fn remove(&self, uid: Uuid) -> Result<(), SysError> {
        self.volumes.remove(uid)?;
        for left in ["new", "old", "ephemeral"] {
            fsops::remove(&self.plain(uid).with_extension(left))?;
        }
        fsops::remove(&self.plain(uid))
    }

    /// Retains a workspace for its owner, beside all others that were left under the same name.
    pub fn put_aside(&self, uid: Uuid, name: &SandboxName, owner: &Owner) -> Result<(), SysError> {
        let id = retained::id_of(name, uid);
        if self.is_there(uid) {
            // First, so that it is never there without.
            retained::note(&retained::make_dir(&self.root)?, &id, owner)?;
        }
        self.put_aside_as(uid, &id)
    }

    fn is_there(&self, uid: Uuid) -> bool {
        self.volumes.find(uid).is_some() || fs::symlink_metadata(self.plain(uid)).is_ok()
    }

    fn put_aside_as(&self, uid: Uuid, label: &str) -> Result<(), SysError> {
        fsops::remove(&self.passing(uid))?;
        if !self.is_there(uid) {
            return Ok(());
        }
        let (from, to) = (self.plain(uid), retained::make_dir(&self.root)?.join(label));
        // It was put there before: what is left here is half of a move, and erases nothing.
        if fs::symlink_metadata(&to).is_ok() || self.volumes.is_aside(&to) {
            return Ok(());
        }
        if self.volumes.put_aside(uid, &to)? {
            return Ok(());
        }
        reopen(&from)?;
        volume::touch(&from);
        fs::rename(&from, &to).map_err(|source| SysError::io("rename", &from, source))
    }

    /// Puts a copy of another tree, which only we can get at, in place of a workspace, which is put aside under a
    /// label that no sandbox can have as its name. Repeated, it is the tree of before that goes, not what was put
    /// aside.
    pub fn replace(&self, wanted: &Wanted<'_>, with: &Path, label: &str) -> Result<(), SysError> {
        let aside = retained::make_dir(&self.root)?.join(label);
        if fs::symlink_metadata(&aside).is_ok() || self.volumes.is_aside(&aside) {
            self.remove(wanted.uid)?;
        } else {
            self.put_aside_as(wanted.uid, label)?;
        }
        let Place { files, .. } = self.place(wanted)?;
        let unfinished = files.with_extension("new");
        fsops::remove(&unfinished)?;
        fsops::copy(with, &unfinished, None)?;
        if self.as_root {
            fsops::give(&unfinished, wanted.host_uid)?;
        }
        fs::rename(&unfinished, &files).map_err(|source| SysError::io("rename", &files, source))
    }

    /// Takes the newest workspace back that this owner left under this name. Returns whether there was one.
    pub fn take_back(
        &self,
        uid: Uuid,
        host_uid: u32,
        name: &SandboxName,
        owner: &Owner,
    ) -> Result<bool, SysError> {
        if self.is_there(uid) {
            return Ok(false);
        }
        let all = retained::of_name(&self.root, name)?;
        let Some(own) = all.iter().find(|one| one.is_of(owner)) else { return Ok(false) };
        let aside = retained::dir(&self.root);
        let (from, to) = (aside.join(&own.id), self.plain(uid));
        if !self.volumes.take_back(uid, &from, host_uid)? {
            if self.as_root {
                fsops::give(&from, host_uid)?;
            }
            fs::rename(&from, &to).map_err(|source| SysError::io("rename", &from, source))?;
        }
        retained::forget(&aside, &own.id);
        Ok(true)
    }

    /// The newest workspace that somebody else left under this name, if this owner left none.
    pub fn left_by_others(
        &self,
        name: &SandboxName,
        owner: &Owner,
    ) -> Result<Option<Retained>, SysError> {
        let all = retained::of_name(&self.root, name)?;
        let has_own = all.iter().any(|one| one.is_of(owner));
        Ok(all.into_iter().next().filter(|_| !has_own))
    }

    /// Removes what was put aside longer ago than `keep_ms`.
    pub fn expire(&self, now_ms: u64, keep_ms: u64) -> Result<(), SysError> {
        let mut done = Ok(());
        for entry in fs::read_dir(retained::dir(&self.root)).into_iter().flatten().flatten() {
            let put_aside = entry.metadata().map_or(0, |meta| meta.mtime().unsigned_abs() * 1000);
            if put_aside.saturating_add(keep_ms) < now_ms {
                // One that stays keeps no other.
                let removed = volume::remove_aside(&entry.path());
                done = done.and(removed);
            }
        }
        done
    }

    /// Copies a workspace to where there is nothing yet.
    pub fn copy(&self, uid: Uuid, host_uid: u32, to: &Path) -> Result<(), SysError> {
        fsops::copy(&self.path(uid), to, self.ids(host_uid))
    }

    /// Which of these ids own what there is of any workspace, those put aside included.
    pub fn owners(&self, ids: &Range<u32>) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        owners(&self.root, OWNERS_DEPTH, ids, &mut found);
        found
    }

    /// Why a workspace takes more of the disk than it may, by counting every file of it.
    pub fn excess(&self, uid: Uuid, megabytes: u64) -> Result<Option<String>, SysError> {
        let bytes = megabytes << 20;
        let files_max = volume::inodes_of(bytes);
        let found = fsops::excess(&self.path(uid), bytes, files_max)?;
        Ok(found.map(|excess| match excess {
            fsops::Excess::Bytes(held) => {
                format!("its files take {} MiB of {megabytes}", held.div_ceil(volume::MIB))
            }
            fsops::Excess::Files => format!("it has more than {files_max} files"),
            fsops::Excess::Uncounted(why) => {
                format!(
                    "its files cannot be counted, since it moves directories or has closed one to itself ({why})"
                )
            }
        }))
    }
}

/// What is not the tenants' is looked into: below what is theirs, all is.
fn owners(dir: &Path, depth: u32, ids: &Range<u32>, found: &mut BTreeSet<u32>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if ids.contains(&meta.uid()) {
            found.insert(meta.uid());
        } else if meta.is_dir() && meta.uid() == 0 && depth > 0 {
            owners(&entry.path(), depth - 1, ids, found);
        }
    }
}

/// Made under another name first, so that a workspace is new exactly once.
fn create(
    dir: &Path,
    ids: Option<(u32, u32)>,
    files: &BTreeMap<String, String>,
) -> Result<(), SysError> {
    let unfinished = dir.with_extension("new");
    fsops::remove(&unfinished)?;
    fsops::make(&unfinished, ids)?;
    lay(&unfinished, ids, files)?;
    fs::rename(&unfinished, dir).map_err(|source| SysError::io("rename", dir, source))
}

/// To another file system: a copy that gets its name when it is whole and on disk, and then the original goes at
/// once, so that each of them is all there or not there at all.
fn move_tree(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<(), SysError> {
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|source| SysError::io("rename", from, source))
    };
    if fs::symlink_metadata(to).is_err() {
        let unfinished = to.with_extension("new");
        fsops::remove(&unfinished)?;
        fsops::copy(from, &unfinished, owner)?;
        disk::sync(&unfinished)?;
        rename(&unfinished, to)?;
        disk::sync(to)?;
    }
    let old = from.with_extension("old");
    fsops::remove(&old)?;
    rename(from, &old)?;
    fsops::remove(&old)
}

/// What its owner has closed to itself can be laid into and moved again: without root, we are its owner.
fn reopen(dir: &Path) -> Result<(), SysError> {
    let about = fs::symlink_metadata(dir).map_err(|source| SysError::io("stat", dir, source))?;
    if about.mode() & fsops::MODE != fsops::MODE {
        path::set_mode(dir, (about.mode() & 0o7777) | fsops::MODE)?;
    }
    Ok(())
}

fn lay(
    dir: &Path,
    ids: Option<(u32, u32)>,
    files: &BTreeMap<String, String>,
) -> Result<(), SysError> {
    reopen(dir)?;
    let tree = path::Tree::open(dir, ids)?;
    for (name, content) in files {
        tree.ensure_file(name, content.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
