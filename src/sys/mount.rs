//! Mounts that only this process and what it starts can see, and what is mounted where.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::sys::SysError;

/// A mount namespace of our own, out of which nothing spreads to the host's.
pub fn private_namespace() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| SysError::nix("unshare(CLONE_NEWNS)", errno))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| SysError::nix("mount(MS_SLAVE, /)", errno))
}

/// Makes `at` show what is at `from`.
pub fn bind(from: &Path, at: &Path) -> Result<(), SysError> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        SysError::nix(format!("bind {} at {}", from.display(), at.display()), errno)
    })
}

/// A /proc of this pid namespace at another place.
pub fn proc_at(at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), at, Some("proc"), flags, None::<&str>)
        .map_err(|errno| SysError::nix(format!("mount proc at {}", at.display()), errno))
}

/// What a path lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub at: PathBuf,
    /// The type of the file system, such as `ext4`.
    pub kind: String,
    pub read_only: bool,
    pub no_exec: bool,
}

/// The mount that a path lies on. `None`: it cannot be told.
pub fn of(path: &Path) -> Option<About> {
    let path = std::fs::canonicalize(path).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find(&path, &mounts)
}

/// Of those that a path lies below, the deepest; of those at one place, the last that was mounted.
fn find(path: &Path, mountinfo: &str) -> Option<About> {
    let mut found: Option<About> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ').skip(4);
        let (Some(at), Some(options)) = (fields.next(), fields.next()) else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default().to_owned();
        let of_disk = right.nth(1).unwrap_or_default();
        let at = PathBuf::from(at.replace("\\040", " "));
        let deeper = found.as_ref().is_none_or(|other| at.starts_with(&other.at));
        if path.starts_with(&at) && deeper {
            let has =
                |word: &str| options.split(',').chain(of_disk.split(',')).any(|one| one == word);
            found = Some(About { at, kind, read_only: has("ro"), no_exec: has("noexec") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_on_the_deepest_and_last_mount() {
        let mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n\
            30 22 0:25 / /data rw,noexec - tmpfs none rw\n\
            31 30 0:26 / /data rw - xfs /dev/b ro\n\
            32 22 0:27 / /data\\040two rw - btrfs /dev/c rw\n";
        let of = |path: &str| find(Path::new(path), mounts).unwrap();
        assert_eq!(of("/srv/x").kind, "ext4");
        let data = of("/data/x");
        assert_eq!((data.kind.as_str(), data.read_only, data.no_exec), ("xfs", true, false));
        assert_eq!(of("/data two").kind, "btrfs");
        assert_eq!(of("/database").kind, "ext4");
    }
}
