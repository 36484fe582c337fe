//! Landlock: a process gives up every file it was not told it may have, and what it shares with strangers.
//!
//! Three system calls and no library, because this runs in the smallest of our processes.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::SysError;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

// Access rights of the first ABI, in the kernel's order.
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const ALL_V1: u64 = (1 << 13) - 1;
const REFER_V2: u64 = 1 << 13;
const TRUNCATE_V3: u64 = 1 << 14;

const BIND_AND_CONNECT_TCP_V4: u64 = (1 << 2) - 1;
/// The ABI from which on it keeps signals and sockets without a path away.
pub const SCOPES_SINCE: i64 = 6;
const ABSTRACT_SOCKETS_V6: u64 = 1 << 0;
const SIGNALS_V6: u64 = 1 << 1;

/// `struct landlock_ruleset_attr`. Each version of the kernel's knows more of it, and refuses what it does not know.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// What a process gives up beside files, as far as the kernel can take it away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// Unix sockets without a path that others than itself and its children listen on.
    pub abstract_sockets: bool,
    /// Signals to others than itself and its children.
    pub signals: bool,
    /// TCP, all of it.
    pub tcp: bool,
}

impl Scope {
    fn attributes(self, abi: i64, handled_access_fs: u64) -> (RulesetAttr, usize) {
        let from = |version, wanted, bits| if abi >= version && wanted { bits } else { 0 };
        let attr = RulesetAttr {
            handled_access_fs,
            handled_access_net: from(4, self.tcp, BIND_AND_CONNECT_TCP_V4),
            scoped: from(SCOPES_SINCE, self.abstract_sockets, ABSTRACT_SOCKETS_V6)
                | from(SCOPES_SINCE, self.signals, SIGNALS_V6),
        };
        let words = match abi {
            ..4 => 1,
            4..6 => 2,
            6.. => 3,
        };
        (attr, words * size_of::<u64>())
    }
}

#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// What the kernel offers; 0 where it offers nothing.
pub fn abi() -> i64 {
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: a null attribute of size zero with the VERSION flag only asks for a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION)
    };
    version.max(0)
}

/// Leaves this process only the named trees, and takes away what `scope` says. Paths that do not exist are left out.
///
/// Assumes no_new_privs. Without Landlock in the kernel this does nothing and says so: `Ok(false)`.
pub fn restrict(
    read_only: &[PathBuf],
    writable: &[PathBuf],
    scope: Scope,
) -> Result<bool, SysError> {
    let abi = abi();
    let mut handled = ALL_V1;
    if abi >= 2 {
        handled |= REFER_V2;
    }
    if abi >= 3 {
        handled |= TRUNCATE_V3;
    }
    let Some(ruleset) = ruleset(abi, scope, handled)? else { return Ok(false) };
    for path in read_only {
        allow(&ruleset, path, EXECUTE | READ_FILE | READ_DIR)?;
    }
    for path in writable {
        allow(&ruleset, path, handled)?;
    }
    enforce(&ruleset).map(|()| true)
}

/// Takes away what `scope` says, and leaves all files as they are. Without the kernel's help, nothing.
pub fn restrict_scope(scope: Scope) -> Result<bool, SysError> {
    let abi = abi();
    if abi < SCOPES_SINCE {
        return Ok(false);
    }
    let Some(ruleset) = ruleset(abi, scope, 0)? else { return Ok(false) };
    enforce(&ruleset).map(|()| true)
}

fn ruleset(abi: i64, scope: Scope, handled: u64) -> Result<Option<OwnedFd>, SysError> {
    if abi == 0 {
        return Ok(None);
    }
    let (attr, size) = scope.attributes(abi, handled);
    // SAFETY: `attr` is a valid landlock_ruleset_attr, of at least the size passed, and outlives the call.
    let ret =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0_u32) };
    let Ok(fd @ 0..) = RawFd::try_from(ret) else {
        return Err(SysError::last("landlock_create_ruleset"));
    };
    // SAFETY: the call succeeded, so `fd` is open and nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn enforce(ruleset: &OwnedFd) -> Result<(), SysError> {
    // SAFETY: takes two integers; the ruleset is open.
    let ret =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if ret < 0 { Err(SysError::last("landlock_restrict_self")) } else { Ok(()) }
}

fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> Result<(), SysError> {
    let Ok(parent) = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    // Rights that only make sense for directories are refused on files.
    let file_rights = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE_V3;
    let allowed_access = if path.is_dir() { access } else { access & file_rights };
    let rule = PathBeneath { allowed_access, parent_fd: parent.as_raw_fd() };
    // SAFETY: `rule` is a valid landlock_path_beneath_attr, packed as the kernel has it, with an
    // open descriptor; it outlives the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    if ret < 0 {
        Err(SysError::last(format!("landlock_add_rule {}", path.display())))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_asked_for_what_it_knows() {
        let all = Scope { abstract_sockets: true, signals: true, tcp: true };
        let asked = |abi| {
            let (attr, size) = all.attributes(abi, 1);
            (size, attr.handled_access_fs, attr.handled_access_net, attr.scoped)
        };
        assert_eq!(asked(1), (8, 1, 0, 0));
        assert_eq!(asked(5), (16, 1, 3, 0));
        assert_eq!(asked(7), (24, 1, 3, 3));
        let none = Scope::default().attributes(7, 1).0;
        assert_eq!((none.handled_access_net, none.scoped), (0, 0));
    }
}
