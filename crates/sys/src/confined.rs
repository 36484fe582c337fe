//! How a process is confined, as /proc has it: who it is, what it may, and which namespaces it has to itself.
//!
//! Read and not judged: what of it was promised to anybody is not known here. Landlock is missing, since the kernel
//! tells nobody who is under it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::{poll, read_small, socket};

/// `Seccomp:` of a process under a filter.
const SECCOMP_FILTER: u32 = 2;

/// Capabilities by their numbers; see capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Who a process is and what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// Real, effective, saved, and for files.
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub group_count: usize,
    /// Every capability that it holds or could take without anybody's help.
    pub held: u64,
    /// What a program that it becomes could still be given.
    pub bounding: u64,
    pub no_new_privs: bool,
    /// Filters of system calls that it is under; `None`: kernels before 5.9 do not count them.
    pub filter_count: Option<u32>,
    pub has_filter: bool,
}

impl Privileges {
    /// `None` when it is gone, and when it has ended and waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&read_small(Path::new(&format!("/proc/{pid}/status"))).ok()?)
    }

    /// Of /proc/PID/status. The process chooses its name, in which the kernel escapes the ends of lines.
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let mask = |name| u64::from_str_radix(field(name)?, 16).ok();
        let number = |name| field(name)?.parse::<u32>().ok();
        if matches!(field("State")?.chars().next()?, 'Z' | 'X') {
            return None;
        }
        // No kernel without ambient capabilities has anything in their place.
        let held =
            mask("CapInh")? | mask("CapPrm")? | mask("CapEff")? | mask("CapAmb").unwrap_or(0);
        Some(Self {
            uids: four(field("Uid")?)?,
            gids: four(field("Gid")?)?,
            group_count: field("Groups")?.split_ascii_whitespace().count(),
            held,
            bounding: mask("CapBnd")?,
            no_new_privs: number("NoNewPrivs") == Some(1),
            filter_count: number("Seccomp_filters"),
            has_filter: number("Seccomp") == Some(SECCOMP_FILTER),
        })
    }

    /// Whether it is this user and nobody else, with the group of the same number.
    pub fn is_only(&self, id: u32) -> bool {
        self.uids == [id; 4] && self.gids == [id; 4] && self.group_count == 0
    }

    /// Whether it is under a filter that this other process is not under. Filters are inherited and never shed.
    pub fn is_filtered_beyond(&self, other: &Self) -> bool {
        match (self.filter_count, other.filter_count) {
            (Some(own), Some(others)) => self.has_filter && own > others,
            (None, _) | (_, None) => self.has_filter && !other.has_filter,
        }
    }
}

/// Whether a process is in a sandbox, as far as its privileges tell: it is under a filter that we are not under, and can
/// gain none. Nobody sheds either, nor does whoever they leave a descriptor to. One that has ended is taken for such, and
/// whoever has its number by now is not asked, where the kernel can tell (Linux 6.5).
pub fn is_inside(pid: u32, socket: &impl AsFd) -> bool {
    let (theirs, ours) = (Privileges::of(pid), Privileges::of(std::process::id()));
    // Looked at last: until then nobody else had its number.
    let has_ended = socket::peer_process(socket).and_then(|process| {
        process.map_or(Ok(false), |fd| poll::is_readable_within(fd.as_fd(), 0))
    });
    let both = theirs.zip(ours).filter(|_| matches!(has_ended, Ok(false)));
    both.is_none_or(|(theirs, ours)| theirs.no_new_privs && theirs.is_filtered_beyond(&ours))
}

fn four(text: &str) -> Option<[u32; 4]> {
    let mut numbers = [0; 4];
    let mut words = text.split_ascii_whitespace();
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(numbers)
}

/// The names of capabilities, lowest number first; of one that is younger than this list, its number.
pub fn capability_names(mask: u64) -> String {
    let set = (0..u64::BITS).filter(|bit| mask >> bit & 1 == 1);
    let name = |bit: u32| {
        let known = usize::try_from(bit).ok().and_then(|index| CAPABILITIES.get(index));
        known.map_or_else(|| bit.to_string(), |name| (*name).to_owned())
    };
    set.map(name).collect::<Vec<_>>().join(" ")
}

/// The kinds of namespaces that there are links for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    User,
    Mount,
    Pid,
    Ipc,
    Uts,
    Network,
    Cgroup,
}

impl Namespace {
    /// In /proc/PID/ns.
    fn link(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Network => "net",
            Self::Cgroup => "cgroup",
        }
    }

    /// What the kernel calls the one that a process is in. `None` when it is gone or not ours to see.
    pub fn of(self, pid: u32) -> Option<u64> {
        let target = fs::read_link(format!("/proc/{pid}/ns/{}", self.link())).ok()?;
        self.parse(target.to_str()?)
    }

    /// `net:[4026531833]`.
    fn parse(self, target: &str) -> Option<u64> {
        let rest = target.strip_prefix(self.link())?.strip_prefix(":[")?;
        rest.strip_suffix(']')?.parse().ok()
    }
}

/// What a process has for its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Whether it is the directory that is ours, too.
    pub is_ours: bool,
    pub is_read_only: bool,
}

impl Root {
    /// `None` when it is gone or not ours to see.
    pub fn of(pid: u32) -> Option<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/root"));
        let (theirs, ours) = (fs::metadata(&path).ok()?, fs::metadata("/").ok()?);
        let flags = statvfs(&path).ok()?.flags();
        Some(Self {
            is_ours: (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
            is_read_only: flags.contains(FsFlags::ST_RDONLY),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\tsleep\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t9\nUid:\t200007\t200007\t200007\t200007\n\
        Gid:\t200007\t200007\t200007\t200007\nFDSize:\t64\nGroups:\t \nNStgid:\t9\t2\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\nSpeculation_Store_Bypass:\tvulnerable\n";

    fn changed(from: &str, to: &str) -> Option<Privileges> {
        assert!(CONFINED.contains(from), "{from}");
        Privileges::parse(&CONFINED.replace(from, to))
    }

    #[test]
    fn a_confined_process_is_read_as_one() {
        let read = Privileges::parse(CONFINED).unwrap();
        assert!(read.is_only(200_007) && !read.is_only(0));
        assert_eq!((read.held, read.bounding), (0, 0x1ff_ffff_ffff));
        assert!(read.no_new_privs && read.has_filter);
        assert_eq!(read.filter_count, Some(1));
    }

    #[test]
    fn whoever_could_become_somebody_else_is_not_only_one() {
        let saved_root = "Uid:\t200007\t200007\t0\t200007";
        assert!(
            !changed("Uid:\t200007\t200007\t200007\t200007", saved_root).unwrap().is_only(200_007)
        );
        assert!(!changed("Groups:\t ", "Groups:\t0 ").unwrap().is_only(200_007));
        let group = "Gid:\t0\t200007\t200007\t200007";
        assert!(!changed("Gid:\t200007\t200007\t200007\t200007", group).unwrap().is_only(200_007));
    }

    #[test]
    fn a_capability_counts_wherever_it_is_held() {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = format!("{set}:\t0000000000000000");
            let held = changed(&line, &format!("{set}:\t0000000000200000")).unwrap().held;
            assert_eq!(capability_names(held), "SYS_ADMIN", "{set}");
        }
        assert_eq!(
            capability_names(0b11 | 1 << 40 | 1 << 41),
            "CHOWN DAC_OVERRIDE CHECKPOINT_RESTORE 41"
        );
        assert_eq!(capability_names(0), "");
    }

    #[test]
    fn a_filter_that_the_daemon_is_under_itself_is_none_of_the_sandboxs() {
        let own = Privileges::parse(CONFINED).unwrap();
        let two = changed("Seccomp_filters:\t1", "Seccomp_filters:\t2").unwrap();
        let open = changed("Seccomp:\t2\nSeccomp_filters:\t1", "Seccomp:\t0\nSeccomp_filters:\t0");
        let open = open.unwrap();
        assert!(two.is_filtered_beyond(&own) && own.is_filtered_beyond(&open));
        assert!(!own.is_filtered_beyond(&own) && !open.is_filtered_beyond(&open));
        // Where the kernel does not count them.
        let old = changed("Seccomp_filters:\t1\n", "").unwrap();
        assert!(old.is_filtered_beyond(&open) && !old.is_filtered_beyond(&own));
    }

    #[test]
    fn of_what_has_ended_or_is_cut_short_nothing_is_made_up() {
        assert_eq!(changed("State:\tS (sleeping)", "State:\tZ (zombie)"), None);
        for field in ["State", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(changed(&format!("\n{field}:"), "\nX:"), None, "{field}");
        }
        assert_eq!(changed("Uid:\t200007\t", "Uid:\t"), None);
        assert_eq!(changed("Uid:\t200007\t", "Uid:\t-1\t"), None);
        assert_eq!(changed("CapEff:\t0000000000000000", "CapEff:\t"), None);
    }

    /// Whatever the file holds, reading it ends with an answer, and no answer is better than the whole one.
    #[test]
    fn no_text_breaks_the_reader() {
        let whole = Privileges::parse(CONFINED);
        for end in 0..CONFINED.len() {
            let cut = Privileges::parse(&CONFINED[..end]);
            assert!(cut.is_none() || cut.map(|read| read.held) == whole.map(|read| read.held));
        }
        let mut drawn = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut bytes = CONFINED.as_bytes().to_vec();
            for _ in 0..4 {
                drawn ^= drawn << 13;
                drawn ^= drawn >> 7;
                drawn ^= drawn << 17;
                let [at, value, ..] = drawn.to_le_bytes().map(usize::from);
                let at = (at << 3 | value & 7) % bytes.len();
                bytes[at] = u8::try_from(value).unwrap();
            }
            let text = String::from_utf8_lossy(&bytes);
            let _ = Privileges::parse(&text);
            let _ = Namespace::Network.parse(&text);
        }
    }

    #[test]
    fn a_namespace_is_the_number_in_its_link() {
        assert_eq!(Namespace::Network.parse("net:[4026531833]"), Some(4_026_531_833));
        for wrong in ["net:4026531833", "mnt:[1]", "net:[]", "net:[x]", "net:[1", ""] {
            assert_eq!(Namespace::Network.parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn we_are_where_we_are() {
        let own = std::process::id();
        let read = Privileges::of(own).unwrap();
        assert_eq!(read.uids[1], nix::unistd::geteuid().as_raw());
        assert!(!read.is_filtered_beyond(&read));
        for kind in [Namespace::User, Namespace::Mount, Namespace::Pid, Namespace::Network] {
            assert!(kind.of(own).is_some() && kind.of(own) == kind.of(own), "{kind:?}");
        }
        assert!(Root::of(own).unwrap().is_ours);
        assert_eq!((Privileges::of(u32::MAX), Root::of(u32::MAX)), (None, None));
        assert_eq!(Namespace::Ipc.of(u32::MAX), None);
    }
}
