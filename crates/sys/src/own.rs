//! Directories of ours, in which whatever lies is believed: so nobody else may have had a hand in them.
//!
//! ```text
//!   parent --judged: nobody else may put another directory there--> name --O_NOFOLLOW--> descriptor
//!                                                                        --fstat--> owner, mode --fchmod-->
//! ```
//!
//! A link is followed if only somebody who is trusted can have made it. A directory that anybody could write to is
//! taken while it is empty, as containers hand them over, and refused when somebody may have filled it before us.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::SysError;
use crate::beneath::{Beneath, Kind, Meta, name_of};
use crate::trust::{Distrust, Fault, LINKS_MAX, People, TrustError, has_acl, word};

/// Of a directory that nobody else may enter.
pub const PRIVATE: u32 = 0o700;
/// Of one that others may pass through, if they know what lies in it, and not look into.
pub const PASSABLE: u32 = 0o711;
/// Whoever may write to a directory with this bit can still not move what is another's.
const STICKY: u32 = 0o1000;

/// Has a directory of ours be there, with this mode.
pub fn claim(dir: &Path, mode: u32) -> Result<(), TrustError> {
    let people = People::of_this_host();
    let made = |parent: &Path| DirBuilder::new().recursive(true).mode(mode).create(parent);
    let Some(found) = find(&people, dir, &made, Some(mode))? else {
        return Err(TrustError::Unreadable(io::ErrorKind::NotFound.into()));
    };
    let about = found.dir.meta()?;
    let is_closed = match people.fault(&about, has_acl(&found.dir)) {
        Some(Fault::Writable(_)) if found.dir.is_empty()? => false,
        Some(fault) => return Err(found.refused(&people, &fault, mode).into()),
        None => true,
    };
    if about.uid != people.caller {
        return Err(found.refused(&people, &Fault::Owner(about.uid), mode).into());
    }
    if about.mode != mode {
        nix::sys::stat::fchmod(found.dir.as_fd(), Mode::from_bits_truncate(mode))
            .map_err(io::Error::from)?;
    }
    if !is_closed && !found.dir.is_empty()? {
        return Err(found.refused(&people, &Fault::Writable(about.mode), mode).into());
    }
    Ok(())
}

/// The same of one that nobody else may enter.
pub fn claim_private(dir: &Path) -> Result<(), SysError> {
    claim(dir, PRIVATE).map_err(|error| match error {
        TrustError::Distrusted(why) => {
            SysError { call: "use a directory".to_owned(), source: io::Error::other(why) }
        }
        TrustError::Unreadable(source) => SysError::io("make", dir, source),
    })
}

/// Whether [`claim`] would take the directory, or make it. Changes nothing.
pub fn judge(dir: &Path, mode: u32) -> Result<(), TrustError> {
    let people = People::of_this_host();
    let Some(found) = find(&people, dir, &|_| Ok(()), None)? else { return Ok(()) };
    let about = found.dir.meta()?;
    let fault = match people.fault(&about, has_acl(&found.dir)) {
        Some(Fault::Writable(_)) if found.dir.is_empty()? => None,
        None if about.uid != people.caller => Some(Fault::Owner(about.uid)),
        fault => fault,
    };
    fault.map_or(Ok(()), |fault| Err(found.refused(&people, &fault, mode).into()))
}

/// A directory that was opened where nobody can put another one in its place.
struct Found {
    dir: Beneath,
    at: PathBuf,
}

impl Found {
    fn refused(&self, people: &People, fault: &Fault, mode: u32) -> Distrust {
        let (at, us) = (word(&self.at), people.caller);
        let remedy = match fault {
            Fault::Owner(uid) if us == 0 => format!(
                "run it as uid {uid}; or, if nobody does, look through it, then `chown -R 0 {at}`"
            ),
            Fault::Owner(_) => format!("have root `chown -R {us} {at}`"),
            Fault::Writable(_) => {
                format!("look through it for what is not sodiumd's, then `chmod {mode:o} {at}`")
            }
        };
        let why = match fault {
            Fault::Owner(uid) => {
                format!("belongs to uid {uid}, and not to uid {us}, who runs sodiumd")
            }
            Fault::Writable(_) => fault.to_string(),
        };
        Distrust { path: self.at.clone(), why, remedy }
    }
}

/// Opens the directory, through links that are trusted. With `mode`, it is made if it is not there; otherwise `None`.
fn find(
    people: &People,
    dir: &Path,
    make_above: &dyn Fn(&Path) -> io::Result<()>,
    mode: Option<u32>,
) -> Result<Option<Found>, TrustError> {
    let mut at = std::path::absolute(dir)?;
    for _ in 0..LINKS_MAX {
        let above = at.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        make_above(&above)?;
        let name = name_of(&at)?.to_owned();
        let parent = match Beneath::hold(&above) {
            Ok(held) => held,
            // Only what is looked at and not made.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let fault = people.fault(&parent.meta()?, has_acl(&parent));
        match (parent.lstat(&name)?, mode) {
            (None, Some(mode)) => match parent.make_dir(&name, mode) {
                // Judged as what it is, whoever made it.
                Err(error) if error.errno() != Errno::EEXIST as i32 => return Err(error.into()),
                Ok(()) | Err(_) => (),
            },
            (None, None) => {
                // It would lie where others can take it away again.
                let sticky =
                    |fault: &Fault| matches!(fault, Fault::Writable(mode) if mode & STICKY != 0);
                return match fault.filter(|fault| !sticky(fault)) {
                    Some(fault) => Err(lies_badly(&at, &above, &fault).into()),
                    None => Ok(None),
                };
            }
            (Some(meta), _) if meta.kind == Kind::Link => {
                if let Some(fault) = fault {
                    let why = format!("is a link in {}, which {fault}", above.display());
                    let remedy = "name the directory itself".to_owned();
                    return Err(Distrust { path: at, why, remedy }.into());
                }
                at = above.join(parent.read_link(&name)?);
            }
            (Some(_), _) => {
                // What is opened is what is judged, whatever the name stood for a moment ago.
                let dir = parent.open_dir(&name)?;
                let meta = dir.meta()?;
                if let Some(fault) = fault.filter(|fault| !is_kept(people, fault, &meta)) {
                    return Err(lies_badly(&at, &above, &fault).into());
                }
                return Ok(Some(Found { dir, at }));
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP).into())
}

/// Whether others may write beside it, and still not put another one in its place. One that is theirs is refused for
/// that.
fn is_kept(people: &People, fault: &Fault, found: &Meta) -> bool {
    match fault {
        Fault::Writable(mode) => mode & STICKY != 0 || found.uid != people.caller,
        Fault::Owner(_) => false,
    }
}

fn lies_badly(at: &Path, above: &Path, fault: &Fault) -> Distrust {
    let remedy = match fault {
        Fault::Owner(uid) => format!("name one elsewhere: uid {uid} can put another in its place"),
        Fault::Writable(_) => format!("chmod go-w {}", word(above)),
    };
    let why = format!("lies in {}, which {fault}", above.display());
    Distrust { path: at.to_owned(), why, remedy }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;
    use crate::swapped::while_swapped;

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn make(path: &Path, mode: u32) {
        fs::create_dir(path).unwrap();
        set_mode(path, mode);
    }

    fn said(done: Result<(), TrustError>) -> String {
        done.map_or_else(|error| error.to_string(), |()| "taken".to_owned())
    }

    /// What both say: what would be refused is refused, and what is only looked at stays as it is.
    fn tried(path: &Path) -> String {
        let before = fs::symlink_metadata(path).ok().map(|meta| (meta.mode(), meta.uid()));
        let judged = said(judge(path, PRIVATE));
        let after = fs::symlink_metadata(path).ok().map(|meta| (meta.mode(), meta.uid()));
        assert_eq!(before, after, "{}", path.display());
        let claimed = said(claim(path, PRIVATE));
        assert_eq!(judged, claimed, "{}", path.display());
        if claimed == "taken" {
            assert_eq!(mode_of(&fs::canonicalize(path).unwrap()), PRIVATE, "{}", path.display());
        } else {
            let now = fs::symlink_metadata(path).ok().map(|meta| (meta.mode(), meta.uid()));
            assert_eq!(before, now, "{}", path.display());
        }
        claimed
    }

    #[test]
    fn what_nobody_else_had_a_hand_in_is_taken_and_closed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make(&at("open"), 0o755);
        fs::write(at("open/x"), "").unwrap();
        // As containers hand over what is meant to be used.
        make(&at("tmpfs"), 0o1777);
        make(&at("volume"), 0o777);
        make(&at("disk"), 0o755);
        symlink("disk", at("link")).unwrap();
        make(&at("tmp"), 0o1777);
        make(&at("tmp/ours"), 0o755);
        for name in ["new", "above/new", "open", "tmpfs", "volume", "link", "tmp/ours", "tmp/new"] {
            assert_eq!(tried(&at(name)), "taken", "{name}");
        }
        assert_eq!(mode_of(&at("disk")), PRIVATE, "what the link leads to");
        claim(&at("new"), 0o711).unwrap();
        assert_eq!(mode_of(&at("new")), 0o711);
    }

    #[test]
    fn what_somebody_else_may_have_filled_or_can_exchange_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, mode) in [("full", 0o777), ("sticky", 0o1777), ("loose", 0o777), ("etc", 0o755)]
        {
            make(&at(name), mode);
        }
        fs::write(at("full/x"), "").unwrap();
        symlink(at("etc"), at("sticky/link")).unwrap();
        make(&at("loose/ours"), 0o700);
        fs::write(at("file"), "").unwrap();
        symlink("round", at("round")).unwrap();
        for (name, want) in [
            (
                "full",
                "can be written to by others (mode 777): look through it for what is not sodiumd's, then `chmod 700 ",
            ),
            (
                "sticky/link",
                "which can be written to by others (mode 1777): name the directory itself",
            ),
            ("loose/ours", "which can be written to by others (mode 777): chmod go-w "),
            ("file", "Not a directory"),
            ("round", "symbolic link"),
        ] {
            let found = tried(&at(name));
            assert!(found.contains(want) || found == want, "{name}: {found}");
        }
        assert_eq!(mode_of(&at("etc")), 0o755);
        if !crate::is_root() {
            return;
        }
        for name in ["theirs", "below", "group", "sticky/theirs"] {
            make(&at(name), 0o755);
        }
        chown(at("theirs"), Some(1234), Some(1234)).unwrap();
        chown(at("sticky/theirs"), Some(1234), Some(1234)).unwrap();
        make(&at("below/ours"), 0o700);
        chown(at("below"), Some(1234), Some(1234)).unwrap();
        chown(at("group"), Some(0), Some(1234)).unwrap();
        set_mode(&at("group"), 0o775);
        fs::write(at("group/x"), "").unwrap();
        for (name, want) in [
            (
                "theirs",
                "belongs to uid 1234, and not to uid 0, who runs sodiumd: run it as uid 1234",
            ),
            ("sticky/theirs", "belongs to uid 1234"),
            ("below/ours", "which belongs to uid 1234"),
            ("group", "can be written to by others (mode 775)"),
        ] {
            let found = tried(&at(name));
            assert!(found.contains(want), "{name}: {found}");
        }
    }

    #[test]
    fn no_directory_is_taken_where_another_can_be_put_in_its_place() {
        if !crate::is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let loose = dir.path().join("loose");
        make(&loose, 0o777);
        let pair = (loose.join("ours"), loose.join("theirs"));
        make(&pair.0, 0o700);
        make(&pair.1, 0o700);
        chown(&pair.1, Some(1234), Some(1234)).unwrap();
        let name = pair.0.clone();
        let exchanges = while_swapped(&[pair], || {
            for _ in 0..5_000 {
                assert!(claim(&name, PRIVATE).is_err());
            }
        });
        assert!(exchanges > 100, "{exchanges}");
    }

    #[test]
    fn a_name_that_is_exchanged_meanwhile_closes_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (open, outside) = (dir.path().join("open"), dir.path().join("outside"));
        make(&open, 0o1777);
        make(&outside, 0o755);
        let pair = (open.join("ours"), open.join("link"));
        make(&pair.0, 0o755);
        symlink(&outside, &pair.1).unwrap();
        let (mut taken, mut refused) = (0, 0);
        let name = pair.0.clone();
        let exchanges = while_swapped(&[pair], || {
            while taken < 100 || refused < 100 {
                match claim(&name, PRIVATE) {
                    Ok(()) => taken += 1,
                    Err(_) => refused += 1,
                }
            }
        });
        assert!(exchanges > 100, "{exchanges}");
        assert_eq!(mode_of(&outside), 0o755);
    }
}
