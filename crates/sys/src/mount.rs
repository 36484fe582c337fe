//! Mounts that only this process and what it starts can see, and what is mounted where.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::SysError;

/// A mount namespace of our own, out of which nothing spreads to the host's.
pub fn private_namespace() -> Result<(), SysError> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| SysError::nix("unshare(CLONE_NEWNS)", errno))?;
    keep_to_ourselves()
}

/// Nothing that is mounted in this mount namespace spreads out of it.
pub fn keep_to_ourselves() -> Result<(), SysError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| SysError::nix("mount(MS_SLAVE, /)", errno))
}

/// A place of our own over `at`, in a mount namespace of our own: as large as the mount points in it need, and
/// everybody may pass.
pub fn stage(at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=64k,nr_inodes=256,mode=0755"))
        .map_err(|errno| SysError::nix(format!("mount tmpfs at {}", at.display()), errno))
}

/// Makes `at`, which does not exist yet, show the directory or file at `from`, with all that is mounted in it.
pub fn bind_new(from: &Path, at: &Path) -> Result<(), SysError> {
    let is_dir =
        std::fs::metadata(from).map_err(|source| SysError::io("stat", from, source))?.is_dir();
    make_point(at, is_dir)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), at, None::<&str>, flags, None::<&str>).map_err(|errno| {
        SysError::nix(format!("bind {} at {}", from.display(), at.display()), errno)
    })
}

/// Nothing that is mounted elsewhere from now on appears at `at` or below it.
pub fn cut_off(at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>)
        .map_err(|errno| SysError::nix(format!("mount(MS_PRIVATE, {})", at.display()), errno))
}

/// Makes the same path below `root` show what is at `path`, with all that is mounted in there: a link the link, the
/// rest read-only. What does not exist is left out.
pub fn show_at(root: &Path, path: &Path) -> Result<(), SysError> {
    let at = below_root(root, path);
    let Ok(about) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if about.is_symlink() {
        return std::fs::read_link(path)
            .and_then(|target| std::os::unix::fs::symlink(target, &at))
            .map_err(|source| SysError::io("link", &at, source));
    }
    make_point(&at, about.is_dir())?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), &at, None::<&str>, flags, None::<&str>)
        .map_err(|errno| SysError::nix(format!("bind {}", path.display()), errno))?;
    crate::graft::make_read_only(&at)
}

/// Makes a device of the host appear at the same path below `root`. One that does not exist is left out.
pub fn device_at(root: &Path, path: &Path) -> Result<(), SysError> {
    if !path.exists() {
        return Ok(());
    }
    let at = below_root(root, path);
    make_point(&at, false)?;
    bind(path, &at)
}

/// Makes a writable tree appear at `at` below `root`, without devices and set-uid programs.
pub fn tree_at(root: &Path, from: &Path, at: &Path) -> Result<(), SysError> {
    let at = below_root(root, at);
    let about = std::fs::metadata(from).map_err(|source| SysError::io("stat", from, source))?;
    make_point(&at, about.is_dir())?;
    bind(from, &at)?;
    restrict(&at, MsFlags::empty())
}

/// Gives a mount that is there these flags, and none of the others it had but to be without devices and set-uid programs.
fn restrict(at: &Path, more: MsFlags) -> Result<(), SysError> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&str>, at, None::<&str>, flags | more, None::<&str>)
        .map_err(|errno| SysError::nix(format!("remount {}", at.display()), errno))
}

/// A file system in memory that everybody may write to, as large as the group of whoever does may have.
pub fn scratch_at(root: &Path, at: &str) -> Result<(), SysError> {
    let at = below_root(root, Path::new(at));
    make_point(&at, true)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some("mode=1777"))
        .map_err(|errno| SysError::nix(format!("mount tmpfs at {}", at.display()), errno))
}

/// Terminals that are nobody else's.
pub fn terminals_at(root: &Path) -> Result<(), SysError> {
    let at = below_root(root, Path::new("/dev/pts"));
    make_point(&at, true)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("devpts"),
        &at,
        Some("devpts"),
        flags,
        Some("newinstance,ptmxmode=0666,mode=0620,max=64"),
    )
    .map_err(|errno| SysError::nix(format!("mount devpts at {}", at.display()), errno))
}

/// Makes `root`, a mount, the root of this mount namespace, read-only, and lets go of the old one.
pub fn become_root(root: &Path) -> Result<(), SysError> {
    restrict(root, MsFlags::MS_RDONLY)?;
    std::env::set_current_dir(root).map_err(|source| SysError::io("chdir", root, source))?;
    // The old root comes to lie over the new one, and is taken off it.
    nix::unistd::pivot_root(".", ".").map_err(|errno| SysError::nix("pivot_root", errno))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|errno| SysError::nix("umount(old root)", errno))?;
    cut_off(Path::new("/"))?;
    std::env::set_current_dir("/").map_err(|source| SysError::io("chdir", Path::new("/"), source))
}

fn below_root(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// A directory or an empty file to mount over, and the directories on the way.
fn make_point(at: &Path, is_dir: bool) -> Result<(), SysError> {
    let made = match (is_dir, at.parent()) {
        (true, _) | (false, None) => std::fs::create_dir_all(at),
        (false, Some(parent)) => {
            std::fs::create_dir_all(parent).and_then(|()| std::fs::File::create_new(at).map(drop))
        }
    };
    made.map_err(|source| SysError::io("make", at, source))
}

/// Takes away what is mounted at `at`, if anything is, out of sight at once.
pub fn forget(at: &Path) -> Result<(), SysError> {
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing is mounted there, or nothing is there.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(SysError::nix(format!("umount {}", at.display()), errno)),
    }
}

/// Makes `at` show what is at `from`.
pub fn bind(from: &Path, at: &Path) -> Result<(), SysError> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        SysError::nix(format!("bind {} at {}", from.display(), at.display()), errno)
    })
}

/// Mounts files that are only read at another place.
pub fn bind_read_only(from: &Path, at: &Path) -> Result<(), SysError> {
    bind(from, at)?;
    restrict(at, MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC)
}

/// Mounts a directory onto itself where its file system is noexec, as /run is on many hosts, so that programs can be run
/// from it. The mount stays until somebody takes it away.
pub fn allow_exec(dir: &Path) -> Result<(), SysError> {
    if !of(dir).is_some_and(|about| about.no_exec) {
        return Ok(());
    }
    bind(dir, dir)?;
    restrict(dir, MsFlags::empty())
}

/// A /proc of this pid namespace at another place.
pub fn proc_at(at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), at, Some("proc"), flags, None::<&str>)
        .map_err(|errno| SysError::nix(format!("mount proc at {}", at.display()), errno))
}

/// Mounts an ext4 of ours from a device. What tenants delete is given back to the file behind it, and tables
/// that are empty are not written out in the background.
pub fn ext4(device: &Path, at: &Path) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let options = Some("discard,noinit_itable,errors=remount-ro");
    mount(Some(device), at, Some("ext4"), flags, options).map_err(|errno| {
        SysError::nix(format!("mount {} at {}", device.display(), at.display()), errno)
    })
}

/// A file system in memory that takes so much and no more.
pub fn tmpfs(at: &Path, bytes: u64, inodes: u64) -> Result<(), SysError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("size={bytes},nr_inodes={inodes},mode=0700");
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|errno| SysError::nix(format!("mount tmpfs at {}", at.display()), errno))
}

/// Gives one in memory another size.
pub fn resize_tmpfs(at: &Path, bytes: u64, inodes: u64) -> Result<(), SysError> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("size={bytes},nr_inodes={inodes}");
    mount(None::<&str>, at, None::<&str>, flags, Some(options.as_str()))
        .map_err(|errno| SysError::nix(format!("remount {}", at.display()), errno))
}

/// Takes away what is mounted at `at`. `lazily`: out of sight at once, and gone when nobody uses it.
pub fn unmount(at: &Path, lazily: bool) -> Result<(), SysError> {
    let flags = if lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    umount2(at, flags | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|errno| SysError::nix(format!("umount {}", at.display()), errno))
}

/// Makes a directory a mount of its own, if it is none: so that all that is mounted below it can be taken away at
/// once in another namespace, and what is taken away here goes from there as well.
pub fn ensure_shared(dir: &Path) -> Result<(), SysError> {
    if !is_at(dir) {
        bind(dir, dir)?;
    }
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
        .map_err(|errno| SysError::nix(format!("mount(MS_SHARED, {})", dir.display()), errno))
}

/// Whether something is mounted at this very place.
pub fn is_at(dir: &Path) -> bool {
    let real = std::fs::canonicalize(dir);
    real.is_ok_and(|real| of(dir).is_some_and(|about| about.at == real))
}

/// Whether a directory is mounted onto itself, as [`allow_exec`] does it: what somebody mounts there is another one.
pub fn is_itself(at: &Path) -> bool {
    let table = table().unwrap_or_default();
    let lines: Vec<Line<'_>> = table.lines().filter_map(Line::parse).collect();
    let Some(here) = lines.iter().rposition(|line| line.at == at) else { return false };
    let above = lines[..here]
        .iter()
        .filter(|line| at.starts_with(&line.at))
        .max_by_key(|line| line.at.as_os_str().len());
    above.is_some_and(|above| {
        let within = at.strip_prefix(&above.at).unwrap_or(at);
        above.device == lines[here].device
            && Path::new(above.root).join(within) == plain(lines[here].root)
    })
}

/// Where anything is mounted below `dir`, the last mount first.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mounts = table().unwrap_or_default();
    let points = mounts.lines().filter_map(Line::parse).map(|line| line.at);
    let mut found: Vec<PathBuf> = points.filter(|at| at.starts_with(&dir)).collect();
    found.reverse();
    found
}

/// What is mounted where, a line each. A name that is no UTF-8 is somebody else's, and hides none of the others.
pub(super) fn table() -> std::io::Result<String> {
    let bytes = std::fs::read("/proc/self/mountinfo")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of /proc/self/mountinfo.
struct Line<'l> {
    /// Major and minor number.
    device: &'l str,
    /// Which directory of the file system is mounted.
    root: &'l str,
    at: PathBuf,
    options: &'l str,
    kind: &'l str,
    /// Options of the file system, wherever it is mounted.
    of_disk: &'l str,
}

impl<'l> Line<'l> {
    fn parse(line: &'l str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let (mut left, mut right) = (left.split(' ').skip(2), right.split(' '));
        Some(Self {
            device: left.next()?,
            root: left.next()?,
            at: plain(left.next()?),
            options: left.next()?,
            kind: right.next().unwrap_or_default(),
            of_disk: right.nth(1).unwrap_or_default(),
        })
    }
}

/// A path as the table has it: what would end a word or a line, and the escape itself, are three octal digits there.
fn plain(word: &str) -> PathBuf {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [byte, tail @ ..] = rest {
        let digits = tail.first_chunk::<3>().filter(|_| *byte == b'\\');
        let code =
            digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(plain))
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
    let mounts = table().ok()?;
    find(&path, &mounts)
}

/// Of those that a path lies below, the deepest; of those at one place, the last that was mounted.
fn find(path: &Path, mountinfo: &str) -> Option<About> {
    let mut found: Option<About> = None;
    for line in mountinfo.lines().filter_map(Line::parse) {
        let Line { at, kind, options, of_disk, .. } = line;
        let deeper = found.as_ref().is_none_or(|other| at.starts_with(&other.at));
        if path.starts_with(&at) && deeper {
            let has =
                |word: &str| options.split(',').chain(of_disk.split(',')).any(|one| one == word);
            found = Some(About {
                at,
                kind: kind.to_owned(),
                read_only: has("ro"),
                no_exec: has("noexec"),
            });
        }
    }
    found
}

/// Whether nobody else can have files on the file system that `dir`, which is closed to others, lies on: so is the top
/// of that file system, and nothing of it is mounted elsewhere.
pub fn is_ours_alone(dir: &Path) -> bool {
    let Ok(dir) = std::fs::canonicalize(dir) else { return false };
    let mounts = table().unwrap_or_default();
    let closed = |top: &Path| {
        std::fs::metadata(top).is_ok_and(|about| {
            about.mode() & 0o077 == 0 && about.uid() == nix::unistd::geteuid().as_raw()
        })
    };
    let tops = entrances(&dir, &mounts);
    tops.is_some_and(|tops| !tops.is_empty() && tops.iter().all(|top| closed(top)))
}

/// Where the file system that `dir` lies on is entered at its top. `None`: somewhere outside of `dir`, it is entered
/// further down, or what is seen at its top is another.
fn entrances(dir: &Path, mountinfo: &str) -> Option<Vec<PathBuf>> {
    let mounts: Vec<Line<'_>> = mountinfo.lines().filter_map(Line::parse).collect();
    let seen_at = |path: &Path| {
        let above = mounts.iter().filter(|one| path.starts_with(&one.at));
        // Of those at one place, the last.
        above.max_by_key(|one| one.at.as_os_str().len()).map(|one| one.device)
    };
    let device = seen_at(dir)?;
    let all = mounts.iter().filter(|one| one.device == device);
    let tops = all.filter(|one| one.root == "/" || !one.at.starts_with(dir));
    tops.map(|one| (one.root == "/" && seen_at(&one.at) == Some(device)).then(|| one.at.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_entered_at_its_top_or_it_is_not_known_by_whom() {
        let two = "22 1 8:1 / / rw - ext4 /dev/a rw\n30 22 8:2 / /data rw - xfs /dev/b rw\n";
        let entrances = |dir: &str, more: &str| entrances(Path::new(dir), &format!("{two}{more}"));
        let at = |paths: &[&str]| Some(paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(entrances("/data/boxes", ""), at(&["/data"]));
        assert_eq!(entrances("/srv/boxes", ""), at(&["/"]));
        let again = "31 22 8:2 / /again rw - xfs /dev/b rw\n";
        assert_eq!(entrances("/data/boxes", again), at(&["/data", "/again"]));
        let ours = "31 30 8:2 /boxes/.mounts /data/boxes/.mounts rw - xfs /dev/b rw\n";
        assert_eq!(entrances("/data/boxes", ours), at(&["/data"]));
        let part = "31 22 8:2 /scratch /tmp rw - xfs /dev/b rw\n";
        assert_eq!(entrances("/data/boxes", part), None);
        let covered = format!("{again}32 31 0:9 / /again rw - tmpfs none rw\n");
        assert_eq!(entrances("/data/boxes", &covered), None);
    }

    #[test]
    fn a_path_lies_on_the_deepest_and_last_mount() {
        let mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n\
            30 22 0:25 / /data rw,noexec - tmpfs none rw\n\
            31 30 0:26 / /data rw - xfs /dev/b ro\n\
            32 22 0:27 / /data\\040two rw - btrfs /dev/c rw\n\
            33 22 0:28 / /ta\\011b\\134x\\9 rw - vfat /dev/d rw\n";
        assert_eq!(find(Path::new("/ta\tb\\x\\9/y"), mounts).unwrap().kind, "vfat");
        let of = |path: &str| find(Path::new(path), mounts).unwrap();
        assert_eq!(of("/srv/x").kind, "ext4");
        let data = of("/data/x");
        assert_eq!((data.kind.as_str(), data.read_only, data.no_exec), ("xfs", true, false));
        assert_eq!(of("/data two").kind, "btrfs");
        assert_eq!(of("/database").kind, "ext4");
    }
}
