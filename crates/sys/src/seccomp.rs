//! The system-call filter: what a sandbox may ask of the host's kernel.
//!
//! An allow list. What the table in `calls` does not have is answered as by a kernel that does not have it (ENOSYS), so that a
//! call which a newer kernel brings is closed until somebody has looked at it, and programs do without it. What programs expect
//! to be there, and to be forbidden to them, is refused (EPERM). Who may reach what, with the calls that are left, is for the
//! other walls to say.
//!
//! The filter is a value (raw BPF), so that bubblewrap can be handed it as a file and the process driver can load it itself.
//! It searches the numbers by halves. Most calls never run it: the kernel finds out once which numbers are always allowed.

mod calls;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W, sock_filter,
};

use crate::SysError;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = errno(libc::EPERM);
const ENOSYS: u32 = errno(libc::ENOSYS);
const EAFNOSUPPORT: u32 = errno(libc::EAFNOSUPPORT);
const ESOCKTNOSUPPORT: u32 = errno(libc::ESOCKTNOSUPPORT);
const EPROTONOSUPPORT: u32 = errno(libc::EPROTONOSUPPORT);

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

// Offsets into struct seccomp_data. Of each argument the low half, which is all that the kernel reads of those below.
const NR: u32 = 0;
const ARCH_FIELD: u32 = 4;
const ARG0: u32 = 16;
const ARG1: u32 = 24;
const ARG2: u32 = 32;

/// What becomes of a system call. Numbers that no table has are `Absent`, so those of the x32 ABI too, which are the others'
/// twins from 0x4000_0000 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Allow,
    /// EPERM.
    Refuse,
    /// ENOSYS.
    Absent,
    // Allowed but for some arguments.
    Clone,
    Fcntl,
    Ioctl,
    Personality,
    Prctl,
    SetSockOpt,
    Socket,
    SocketPair,
}

/// Flags of clone(2) that ask for a new namespace of any kind, CLONE_NEWTIME included; and CLONE_PARENT, which makes
/// children of whoever is outside.
const REFUSED_FLAGS: u32 = 0x7E02_8080;

/// Commands of fcntl(2) that no workload may give: F_SETLEASE and F_SETDELEG, by which others, the daemon with a copy to
/// make among them, would have to wait for it; and F_NOTIFY, which tells who opens what in the host's programs.
const COMMANDS: &[u32] = &[1024, 1026, 1040];

/// Options of sockets (SOL_SOCKET) that no workload may set: SO_ATTACH_FILTER, SO_ATTACH_BPF and the two of
/// SO_REUSEPORT. What the kernel compiles for them is taken from a room that the whole host shares, and where that is
/// used up nobody's system-call filter can be loaded any more.
const FILTER_OPTIONS: &[u32] = &[26, 50, 51, 52];

/// Requests of ioctl(2) that no workload may make.
const REQUESTS: &[u32] = &[
    // Typing into somebody's terminal, pasting into the console, and having the console's output.
    0x5412,
    0x541C,
    0x541D,
    // A line discipline, each of which is a driver that is loaded for whoever asks.
    0x5423,
    // Having its files counted as those of another project or of none, which FS_IOC_FSSETXATTR and
    // FS_IOC_SETFLAGS do, or in a btrfs subvolume or snapshot of its own, without a limit.
    0x401C_5820,
    0x4008_6602,
    0x4004_6602,
    0x5000_9401,
    0x5000_940E,
    0x5000_9417,
    0x5000_9418,
    // Files that the daemon can no longer copy or remove: of a subvolume made read-only, or encrypted with a key of its own.
    0x4008_941A,
    0x800C_6613,
    0xC050_6617,
];

/// Execution domains that a program may ask for: Linux's own, of 64 or 32 bits, each with the new or the old form of release
/// numbers (UNAME26); and none, which only reads the present one. Others bring back what was removed for safety: pages at
/// address 0, memory that is all executable, addresses that are not random.
const PERSONALITIES: &[u32] = &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// Operations of prctl(2) that no workload may do: PR_SET_MM, which lays out anew what the kernel knows of a process's
/// memory; PR_SCHED_CORE, which keeps everybody else from the other half of a cpu.
const OPERATIONS: &[u32] = &[35, 62];

/// What is left of a socket's type without its flags.
const TYPE_MASK: u32 = 0xF;
/// Kinds of internet sockets that there are from here on are SCTP's and DCCP's, under protocol 0. Raw ones the kernel refuses.
const TYPE_END: u32 = libc::SOCK_RAW.unsigned_abs() + 1;
/// Protocols of internet sockets: the usual one, ICMP (ping without privileges), TCP, UDP, ICMPv6. Every other one is a module
/// that the kernel would load for whoever asks.
const PROTOCOLS: &[u32] = &[0, 1, 6, 17, 58];
/// Protocols of netlink: NETLINK_ROUTE, which getifaddrs asks.
const NETLINK_PROTOCOLS: &[u32] = &[0];

/// The filter.
pub fn program() -> Vec<sock_filter> {
    let mut code = vec![load(ARCH_FIELD), jump(BPF_JEQ, ARCH, 1, 0), ret(KILL), load(NR)];
    code.extend(search(&spans()));
    code
}

/// Whether the filter keeps a system call from workloads, given by its name or its number, whatever its arguments.
pub fn denies(call: &str) -> bool {
    let number = call.parse::<libc::c_long>().ok();
    !calls::all().any(|(name, listed, rule)| {
        !matches!(rule, Rule::Refuse | Rule::Absent) && (name == call || Some(listed) == number)
    })
}

/// The calls that are answered EPERM, by name and number.
pub fn refused() -> impl Iterator<Item = (&'static str, libc::c_long)> {
    let refused = calls::all().filter(|(_, _, rule)| *rule == Rule::Refuse);
    refused.map(|(name, number, _)| (name, number))
}

/// The filter as `bwrap --seccomp` reads it.
pub fn program_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in program() {
        bytes.extend(one.code.to_ne_bytes());
        bytes.extend([one.jt, one.jf]);
        bytes.extend(one.k.to_ne_bytes());
    }
    bytes
}

/// Puts this process, and all it becomes, under the filter.
pub fn load_filter() -> Result<(), SysError> {
    let mut code = program();
    let len = u16::try_from(code.len()).expect("the filter has a few hundred instructions");
    let prog = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    // SAFETY: `prog` points at `len` instructions in `code`; both outlive the call, which copies.
    let ret = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog)
    };
    if ret < 0 { Err(SysError::last("seccomp(SET_MODE_FILTER)")) } else { Ok(()) }
}

/// The first number of each stretch of numbers with the same rule, which reaches to the next one's; the last has no end.
fn spans() -> Vec<(u32, Rule)> {
    let mut listed: Vec<(u32, Rule)> =
        calls::all().map(|(_, call, rule)| (number(call), rule)).collect();
    listed.sort_unstable_by_key(|(number, _)| *number);
    let (mut spans, mut next) = (Vec::new(), 0);
    for (number, rule) in listed {
        if next < number {
            spans.push((next, Rule::Absent));
        }
        spans.push((number, rule));
        next = number + 1;
    }
    spans.push((next, Rule::Absent));
    spans.dedup_by_key(|(_, rule)| *rule);
    spans
}

/// Finds the span of the number that is loaded, and does what its rule says.
fn search(spans: &[(u32, Rule)]) -> Vec<sock_filter> {
    if let [(_, rule)] = spans {
        return answer(*rule);
    }
    let (lower, upper) = spans.split_at(spans.len() / 2);
    let (first, below) = (upper[0].0, search(lower));
    let mut code = match u8::try_from(below.len()) {
        Ok(skip) => vec![jump(BPF_JGE, first, skip, 0)],
        // A test reaches 255 instructions, a plain jump any number.
        Err(_) => vec![jump(BPF_JGE, first, 0, 1), jump_over(&below)],
    };
    code.extend(below);
    code.extend(search(upper));
    code
}

/// Every path through it returns.
fn answer(rule: Rule) -> Vec<sock_filter> {
    match rule {
        Rule::Allow => vec![ret(ALLOW)],
        Rule::Refuse => vec![ret(EPERM)],
        Rule::Absent => vec![ret(ENOSYS)],
        Rule::Clone => {
            vec![load(ARG0), jump(BPF_JSET, REFUSED_FLAGS, 0, 1), ret(EPERM), ret(ALLOW)]
        }
        Rule::Fcntl => by_value(ARG1, COMMANDS, EPERM, ALLOW),
        Rule::Ioctl => by_value(ARG1, REQUESTS, EPERM, ALLOW),
        Rule::Personality => by_value(ARG0, PERSONALITIES, ALLOW, EPERM),
        Rule::Prctl => by_value(ARG0, OPERATIONS, EPERM, ALLOW),
        Rule::SetSockOpt => options_of_sockets(),
        Rule::Socket => sockets(),
        Rule::SocketPair => by_value(ARG0, &[libc::AF_UNIX.unsigned_abs()], ALLOW, EAFNOSUPPORT),
    }
}

/// Everything but the options that attach a program.
fn options_of_sockets() -> Vec<sock_filter> {
    let level = libc::SOL_SOCKET.unsigned_abs();
    let mut code = vec![load(ARG1), jump(BPF_JEQ, level, 1, 0), ret(ALLOW)];
    code.extend(by_value(ARG2, FILTER_OPTIONS, EPERM, ALLOW));
    code
}

/// Sockets of the families and protocols a workload may open.
fn sockets() -> Vec<sock_filter> {
    let mut code = vec![load(ARG0)];
    code.extend(only_for(libc::AF_UNIX, &[ret(ALLOW)]));
    let netlink = by_value(ARG2, NETLINK_PROTOCOLS, ALLOW, EPROTONOSUPPORT);
    let mut internet =
        vec![load(ARG1), masked(TYPE_MASK), jump(BPF_JGE, TYPE_END, 0, 1), ret(ESOCKTNOSUPPORT)];
    internet.extend(by_value(ARG2, PROTOCOLS, ALLOW, EPROTONOSUPPORT));
    code.extend(only_for(libc::AF_INET, &internet));
    code.extend(only_for(libc::AF_INET6, &internet));
    code.extend(only_for(libc::AF_NETLINK, &netlink));
    code.push(ret(EAFNOSUPPORT));
    code
}

/// `found` for an argument that is one of these, `other` for any other.
fn by_value(argument: u32, values: &[u32], found: u32, other: u32) -> Vec<sock_filter> {
    let mut code = vec![load(argument)];
    for value in values {
        code.extend([jump(BPF_JEQ, *value, 0, 1), ret(found)]);
    }
    code.push(ret(other));
    code
}

/// `body` for one family of sockets; every path through it must return.
fn only_for(family: libc::c_int, body: &[sock_filter]) -> Vec<sock_filter> {
    let skip = u8::try_from(body.len()).expect("bodies are short");
    let mut code = vec![jump(BPF_JEQ, family.unsigned_abs(), 0, skip)];
    code.extend_from_slice(body);
    code
}

const fn errno(code: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | code.unsigned_abs()
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("system calls are small numbers")
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: code(BPF_LD | BPF_W | BPF_ABS), jt: 0, jf: 0, k: offset }
}

fn masked(mask: u32) -> sock_filter {
    sock_filter { code: code(BPF_ALU | BPF_AND | BPF_K), jt: 0, jf: 0, k: mask }
}

fn jump(test: u32, value: u32, when_true: u8, when_false: u8) -> sock_filter {
    sock_filter { code: code(BPF_JMP | test | BPF_K), jt: when_true, jf: when_false, k: value }
}

fn jump_over(body: &[sock_filter]) -> sock_filter {
    let count = u32::try_from(body.len()).expect("the filter has a few hundred instructions");
    sock_filter { code: code(BPF_JMP | BPF_JA), jt: 0, jf: 0, k: count }
}

fn ret(action: u32) -> sock_filter {
    sock_filter { code: code(BPF_RET | BPF_K), jt: 0, jf: 0, k: action }
}

fn code(bits: u32) -> u16 {
    u16::try_from(bits).expect("BPF operations have 16 bits")
}

#[cfg(test)]
mod tests;
