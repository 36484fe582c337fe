//! Whether a file may be believed that says what root runs: only who may do that anyway can have written it.
//!
//! It is a regular file of root's or of whoever reads it, nobody else can write to it, and nobody else can put
//! another one in its place: the directory it lies in is judged in the same way. A sticky bit does not help, as
//! whoever comes first may name a file there as he likes. A group may write if nobody else is in it: that of
//! root, or the private group that Debian gives to each user, whose files are made group-writable.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::SysError;
use crate::beneath::{Beneath, Kind, Links, Meta, ReadError};

/// Links from one place to the next, as the kernel allows.
pub(super) const LINKS_MAX: usize = 40;

/// A file is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {why}: {remedy}", path.display())]
pub struct Distrust {
    pub path: PathBuf,
    /// Goes on from the path.
    pub why: String,
    /// The command that mends it.
    pub remedy: String,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Distrusted(#[from] Distrust),
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

impl From<SysError> for TrustError {
    fn from(error: SysError) -> Self {
        Self::Unreadable(error.source)
    }
}

/// A file that is believed.
#[derive(Debug)]
pub struct Believed {
    pub bytes: Vec<u8>,
    path: PathBuf,
    mode: u32,
}

impl Believed {
    /// An error if somebody else could read it, for a file that turned out to hold a secret.
    pub fn check_secret(&self) -> Result<(), Distrust> {
        if self.mode & 0o077 == 0 {
            return Ok(());
        }
        Err(Distrust {
            why: format!("holds a secret and has mode {:03o}", self.mode & 0o777),
            remedy: format!("chmod 600 {}", word(&self.path)),
            path: self.path.clone(),
        })
    }
}

/// Reads a file that is believed. Links are followed if each lies where it is believed too.
pub fn read(path: &Path, bytes_max: u64) -> Result<Believed, TrustError> {
    let people = People::of_this_host();
    let mut at = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let (dir, name) = Beneath::parent_of(&at)?;
        let found = dir.lstat(&name)?;
        let found = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let parent = at.parent().unwrap_or_else(|| Path::new("/"));
        if let Some(fault) = people.fault(&dir.meta()?, has_acl(&dir)) {
            return Err(in_directory(&at, parent, &fault).into());
        }
        if found.kind != Kind::Link {
            return read_file(&people, (&dir, name.as_os_str()), at, bytes_max);
        }
        at = parent.join(dir.read_link(&name)?);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP).into())
}

fn read_file(
    people: &People,
    (dir, name): (&Beneath, &OsStr),
    path: PathBuf,
    bytes_max: u64,
) -> Result<Believed, TrustError> {
    let (file, meta) = match dir.open_file(name, Links::Refused) {
        Ok(opened) => opened,
        Err(ReadError::NotAFile) => {
            let why = "is not a regular file".to_owned();
            let remedy = "name one with --config".to_owned();
            return Err(Distrust { path, why, remedy }.into());
        }
        Err(error) => return Err(error.into_io().into()),
    };
    // /proc shows as root's what its processes have written, and can be mounted wherever somebody likes.
    if fstatfs(&file).is_ok_and(|system| system.filesystem_type() == PROC_SUPER_MAGIC) {
        let why = "is of no disk: any process may have written it".to_owned();
        return Err(
            Distrust { path, why, remedy: "name another one with --config".to_owned() }.into()
        );
    }
    if let Some(fault) = people.fault(&meta, has_acl(&file)) {
        let remedy = match fault {
            Fault::Owner(_) => format!("chown {} {}", people.caller, word(&path)),
            Fault::Writable(_) => format!("chmod go-w {}", word(&path)),
        };
        return Err(Distrust { path, why: fault.to_string(), remedy }.into());
    }
    let bytes = read_all(file, bytes_max)?;
    Ok(Believed { bytes, path, mode: meta.mode })
}

fn read_all(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let why = format!("is larger than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}

fn in_directory(path: &Path, dir: &Path, fault: &Fault) -> Distrust {
    let elsewhere = format!("install -D -m 600 {} /etc/sodium/config.json", word(path));
    let remedy = match fault {
        Fault::Owner(_) => elsewhere,
        // One with a sticky bit is meant to be written to.
        Fault::Writable(mode) if mode & 0o1000 != 0 => elsewhere,
        Fault::Writable(_) => format!("chmod go-w {}", word(dir)),
    };
    let why = format!("lies in {}, which {fault}", dir.display());
    Distrust { path: path.to_owned(), why, remedy }
}

/// Why somebody else might have had a hand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("belongs to uid {0}, who is neither root nor the one who reads it")]
    Owner(u32),
    #[error("can be written to by others (mode {0:03o})")]
    Writable(u32),
}

/// Who is who, as far as groups are concerned.
pub(super) struct People {
    /// Who reads the file.
    pub(super) caller: u32,
    passwd: String,
    group: String,
}

impl People {
    pub(super) fn of_this_host() -> Self {
        let read = |path: &str| crate::read_small(Path::new(path)).unwrap_or_default();
        let (caller, _) = crate::own_ids();
        Self { caller, passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    pub(super) fn fault(&self, meta: &Meta, has_acl: bool) -> Option<Fault> {
        if !self.are_trusted(meta.uid) {
            return Some(Fault::Owner(meta.uid));
        }
        // With an access-control list the group's bits are the most that anybody in it may do.
        let by_group = meta.mode & 0o020 != 0 && (has_acl || !self.is_private(meta.gid));
        (by_group || meta.mode & 0o002 != 0).then_some(Fault::Writable(meta.mode))
    }

    fn are_trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == self.caller
    }

    /// Whether nobody is in the group but root and the caller. One that this host does not list is that of
    /// its user if it has his number.
    fn is_private(&self, gid: u32) -> bool {
        if gid == 0 {
            return true;
        }
        let users = || fields(&self.passwd).filter_map(User::of);
        let all_trusted = |name: &str| {
            let mut named = users().filter(|user| user.name == name).peekable();
            named.peek().is_some() && named.all(|user| self.are_trusted(user.uid))
        };
        let strangers = users().any(|user| user.gid == gid && !self.are_trusted(user.uid));
        let groups = fields(&self.group).filter(|fields| number(fields.get(2)) == Some(gid));
        let mut members =
            groups.map(|fields| fields.get(3).copied().unwrap_or_default()).peekable();
        let listed = members.peek().is_some();
        let all_members = members
            .flat_map(|members| members.split(',').filter(|name| !name.is_empty()))
            .all(all_trusted);
        !strangers && all_members && (listed || gid == self.caller)
    }
}

struct User<'t> {
    name: &'t str,
    uid: u32,
    gid: u32,
}

impl<'t> User<'t> {
    fn of(fields: Vec<&'t str>) -> Option<Self> {
        let name = fields.first().copied()?;
        Some(Self { name, uid: number(fields.get(2))?, gid: number(fields.get(3))? })
    }
}

fn fields(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn number(field: Option<&&str>) -> Option<u32> {
    field.and_then(|text| text.trim().parse().ok())
}

/// Whether more is said of who may use a file than its mode says. It may be held without being open.
pub(super) fn has_acl(file: &impl AsFd) -> bool {
    let same = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let Ok(same) = std::ffi::CString::new(same) else { return false };
    let name = c"system.posix_acl_access";
    // SAFETY: both texts are NUL-terminated, and nothing is written to the null buffer, whose size is 0: only the size
    // of the value is asked for.
    let size = unsafe { libc::getxattr(same.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    size > 0
}

/// A path as a word for a shell.
pub fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n\
        bob:x:1001:1001::/:/bin/sh\ncarl:x:1002:100::/:/bin/sh\nerin:x:1003:104::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nalice:x:1000:\nbob:x:1001:alice\nstaff:x:50:alice\n\
        empty:x:60:\nboth:x:70:alice,bob\nadmins:x:80:root\nghosts:x:90:nobody-knows\nsolo:x:104:\n";

    #[test]
    fn what_a_process_says_of_itself_is_nobodys_word() {
        let Err(TrustError::Distrusted(found)) = read(Path::new("/proc/self/environ"), 1 << 20)
        else {
            panic!("its environment is believed");
        };
        assert!(found.why.contains("any process"), "{}", found.why);
    }

    #[test]
    fn who_may_have_written_it_decides() {
        let people = |caller| People { caller, passwd: PASSWD.to_owned(), group: GROUP.to_owned() };
        let meta = |mode, uid, gid| Meta {
            kind: Kind::File,
            mode,
            uid,
            gid,
            device: 0,
            inode: 0,
            bytes: 0,
            modified_ns: 0,
            changed_ns: 0,
        };
        for (caller, mode, uid, gid, believed) in [
            // As a checkout is: of root, or of the caller under umask 002.
            (0, 0o644, 0, 0, true),
            (0, 0o664, 0, 0, true),
            (1000, 0o664, 1000, 1000, true),
            (1000, 0o644, 0, 0, true),
            (1000, 0o600, 1000, 100, true),
            // Of somebody else.
            (0, 0o600, 1000, 1000, false),
            (1000, 0o600, 1001, 1001, false),
            // That anybody may write to, with a sticky bit or without.
            (0, 0o666, 0, 0, false),
            (0, 0o1777, 0, 0, false),
            (1000, 0o602, 1000, 1000, false),
            // Groups: with others in them, by either list, and without.
            (1000, 0o664, 1000, 100, false),
            (1000, 0o664, 1000, 1001, false),
            (1000, 0o664, 1000, 70, false),
            (1000, 0o664, 1000, 50, true),
            (1000, 0o664, 1000, 60, true),
            (0, 0o664, 0, 50, false),
            (0, 0o664, 0, 80, true),
            (1000, 0o664, 1000, 104, false),
            (1003, 0o664, 1003, 104, true),
            (1000, 0o664, 1000, 90, false),
            // Not listed here.
            (1234, 0o664, 1234, 1234, true),
            (1234, 0o664, 1234, 4321, false),
        ] {
            let fault = people(caller).fault(&meta(mode, uid, gid), false);
            assert_eq!(fault.is_none(), believed, "{caller} {mode:o} {uid}:{gid}: {fault:?}");
        }
        let shared = meta(0o664, 0, 0);
        assert_eq!(people(0).fault(&shared, true), Some(Fault::Writable(0o664)));
        assert_eq!(people(0).fault(&meta(0o644, 0, 0), true), None);
    }

    fn said(path: &Path) -> String {
        match read(path, 100) {
            Ok(believed) => String::from_utf8(believed.bytes).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_file_is_judged_with_the_directory_and_with_each_link_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str, mode| {
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        for place in ["good", "open"] {
            fs::create_dir(at(place)).unwrap();
            fs::write(at(place).join("c"), place).unwrap();
            fs::set_permissions(at(place).join("c"), fs::Permissions::from_mode(0o644)).unwrap();
        }
        mode("good", 0o755);
        mode("open", 0o1777);
        symlink("c", at("good/near")).unwrap();
        symlink("../open/c", at("good/far")).unwrap();
        symlink(at("good/c"), at("open/back")).unwrap();
        symlink("round", at("good/round")).unwrap();
        fs::write(at("good/shared file"), "x").unwrap();
        mode("good/shared file", 0o666);
        fs::write(at("good/large"), vec![b'x'; 101]).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(at("good/pipe")).status();
        assert!(pipe.unwrap().success());
        for (name, want) in [
            ("good/c", "good"),
            ("good/near", "good"),
            ("good/far", "which can be written to by others (mode 1777): install -D -m 600 "),
            ("open/c", "which can be written to by others (mode 1777): install -D -m 600 "),
            ("open/back", "which can be written to by others (mode 1777): install -D -m 600 "),
            ("good/round", "symbolic link"),
            ("good/shared file", "(mode 666): chmod go-w '"),
            ("good/large", "is larger than 100 bytes"),
            ("good/pipe", "is not a regular file: name one with --config"),
            ("good", "is not a regular file: name one with --config"),
            ("good/none", "No such file"),
        ] {
            let said = said(&at(name));
            assert!(said.contains(want), "{name}: {said}");
        }
        let secret = read(&at("good/c"), 100).unwrap().check_secret().unwrap_err();
        assert_eq!(secret.remedy, format!("chmod 600 {}", at("good/c").display()));
        mode("good/c", 0o600);
        assert_eq!(read(&at("good/c"), 100).unwrap().check_secret(), Ok(()));
        mode("good", 0o777);
        assert!(said(&at("good/c")).ends_with(&format!("chmod go-w {}", at("good").display())));
        if crate::is_root() {
            mode("good", 0o755);
            chown(at("good/c"), Some(1234), Some(1234)).unwrap();
            assert!(said(&at("good/c")).contains("belongs to uid 1234"));
            assert!(said(&at("good/c")).contains(": chown 0 "));
            chown(at("good/c"), Some(0), Some(0)).unwrap();
            chown(at("good"), Some(1234), Some(1234)).unwrap();
            assert!(said(&at("good/c")).contains("which belongs to uid 1234"));
        }
    }
}
