//! What sandboxes are shown of the host, by whatever runtime: its /usr as the root file system for
//! now, a few files of its /etc, and a passwd and a group in which there is nobody but them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sodium_sys::SysError;
use sodium_sys::path;

/// Where the workspace is inside, and HOME.
pub(crate) const HOME: &str = "/home/container";
/// What HOME lies in, and its name there.
pub(crate) const HOMES: &str = "/home";
pub(crate) const HOME_NAME: &str = "container";
/// What gVisor's /tmp is a link to, and its name among the homes.
pub(crate) const TMP: &str = "/home/.tmp";
pub(crate) const TMP_NAME: &str = ".tmp";
/// Where a guest that was started ahead finds the program that becomes what it is claimed for.
pub const INIT: &str = "/sodium-init";
/// Who the workload is inside.
pub(crate) const INSIDE_ID: u32 = 1000;

/// The same program, as it lies in [`Shown::made`] for those whose sandboxes are not shown a root of ours.
pub(crate) const INIT_COPY: &str = "sodium-init";

/// Where all of it is, in the run directory.
pub(crate) const MADE: &str = "shown";

/// Files in [`Shown::made`].
pub(crate) const PASSWD: &str = "passwd";
pub(crate) const GROUP: &str = "group";

/// Read-only files of the host that programs ask for, where they exist.
pub(crate) const ETC: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/bash.bashrc",
    "/etc/python3",
    "/etc/python3.11",
    "/etc/java-17-openjdk",
];
/// And these only with the host's network.
pub(crate) const ETC_NETWORK: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/gai.conf"];

/// What /tmp is in a root of ours: gVisor mounts all homes at once, and has it among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tmp {
    Link,
    Directory,
}

/// What this host has, found once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `/bin` and its like: the symlink's target on a merged-/usr host, or none.
    pub top_level: Vec<(String, Option<String>)>,
    /// Files made for the sandboxes, in the run directory.
    pub made: PathBuf,
}

impl Shown {
    /// Looks at the host and writes the files.
    pub fn make(run: &Path) -> Result<Self, SysError> {
        let made = run.join(MADE);
        fs::create_dir_all(&made).map_err(|source| SysError::io("mkdir", &made, source))?;
        let home = format!("container:x:{INSIDE_ID}:{INSIDE_ID}:container:{HOME}:/bin/bash\n");
        let nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        let group = format!("container:x:{INSIDE_ID}:\nnogroup:x:65534:\n");
        path::write_durably(&made.join(PASSWD), format!("{home}{nobody}").as_bytes())?;
        path::write_durably(&made.join(GROUP), group.as_bytes())?;
        let top_level = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]
            .into_iter()
            .filter(|name| Path::new("/").join(name).exists())
            .map(|name| {
                let target = fs::read_link(Path::new("/").join(name)).ok();
                (name.to_owned(), target.map(|path| path.to_string_lossy().into_owned()))
            })
            .collect();
        Ok(Self { top_level, made })
    }

    /// A directory that is to be the root of sandboxes, with everything in it but what is mounted: each mount is
    /// dear at a start. Made once per boot, release and state of the host's files, and never touched again:
    /// sandboxes that an earlier daemon started look at it.
    pub fn root(&self, shim: &Path, tmp: Tmp) -> Result<PathBuf, SysError> {
        let kind = match tmp {
            Tmp::Link => "linked",
            Tmp::Directory => "plain",
        };
        let state = state_of(shim);
        let name = format!("root-{}-{kind}-{state:016x}", env!("CARGO_PKG_VERSION"));
        let root = self.made.join(name);
        if root.is_dir() {
            return Ok(root);
        }
        let unfinished = self.made.join(format!("root-{kind}.new"));
        let failed = |source| SysError::io("make", &root, source);
        self.fill(&unfinished, shim, tmp)
            .and_then(|()| fs::rename(&unfinished, &root))
            .map_err(failed)?;
        Ok(root)
    }

    fn fill(&self, root: &Path, shim: &Path, tmp: Tmp) -> io::Result<()> {
        remove(root)?;
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        for dir in ["usr", "etc", "proc", "dev", "sys", "run", "var", HOME, TMP] {
            fs::create_dir_all(inside(dir))?;
        }
        std::os::unix::fs::symlink("/tmp", inside("var/tmp"))?;
        match tmp {
            Tmp::Link => std::os::unix::fs::symlink(TMP, inside("tmp"))?,
            Tmp::Directory => fs::create_dir(inside("tmp"))?,
        }
        for (name, target) in &self.top_level {
            match target {
                Some(target) => std::os::unix::fs::symlink(target, inside(name))?,
                None => fs::create_dir(inside(name))?,
            }
        }
        for path in ETC {
            copy(Path::new(path), &inside(path))?;
        }
        // To mount over.
        for path in ETC_NETWORK {
            fs::write(inside(path), "")?;
        }
        fs::copy(shim, inside(INIT))?;
        fs::copy(self.made.join(PASSWD), inside("etc/passwd"))?;
        fs::copy(self.made.join(GROUP), inside("etc/group"))?;
        Ok(())
    }
}

/// Lays the shim among what is made for sandboxes, where one may be shown it under its other name: for `prove`.
pub fn add_init(run: &Path, shim: &Path) -> Result<(), SysError> {
    let made = run.join(MADE);
    let (to, unfinished) = (made.join(INIT_COPY), made.join("sodium-init.new"));
    let same = |a: fs::Metadata, b: fs::Metadata| {
        a.len() == b.len() && a.modified().ok() == b.modified().ok()
    };
    if let (Ok(there), Ok(ours)) = (fs::metadata(&to), fs::metadata(shim))
        && same(there, ours)
    {
        return Ok(());
    }
    let copied = fs::create_dir_all(&made)
        .and_then(|()| fs::copy(shim, &unfinished))
        .and_then(|_| fs::metadata(shim)?.modified())
        .and_then(|at| fs::File::options().write(true).open(&unfinished)?.set_modified(at))
        .and_then(|()| fs::rename(&unfinished, &to));
    copied.map_err(|source| SysError::io("copy", shim, source))
}

/// A number that is another one if any file that is copied into a root is another one.
fn state_of(shim: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for path in ETC.iter().map(Path::new).chain([shim]) {
        let about = fs::symlink_metadata(path);
        about.map(|about| (about.len(), about.modified().ok())).ok().hash(&mut hasher);
    }
    hasher.finish()
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Files, directories and symlinks, as far as they are there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else { return Ok(()) };
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    if meta.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if meta.is_file() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
