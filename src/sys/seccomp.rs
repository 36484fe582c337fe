//! The system-call filter: what no sandbox may ask of the host's kernel.
//!
//! A deny list over what remains possible without capabilities: ways to make or join namespaces,
//! to mount, to load code into the kernel, and young or rarely used subsystems that most kernel
//! exploits begin with. Everything else is left to the other walls. The filter is a value (raw
//! BPF), so that bubblewrap can be handed it as a file and the process driver can load it itself.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter,
};

use crate::sys::SysError;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = errno(libc::EPERM);
const ENOSYS: u32 = errno(libc::ENOSYS);
const EAFNOSUPPORT: u32 = errno(libc::EAFNOSUPPORT);

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// System calls numbered from here on are the x32 twins of others, which would dodge the list.
const X32_FIRST: u32 = 0x4000_0000;

/// Flags of clone(2) that ask for a new namespace of any kind, CLONE_NEWTIME included.
const NEW_NAMESPACES: u32 = 0x7E02_0080;

// Offsets into struct seccomp_data.
const NR: u32 = 0;
const ARCH_FIELD: u32 = 4;
const ARG0: u32 = 16;
const ARG1: u32 = 24;

/// Refused whatever their arguments.
const DENIED: &[(&str, libc::c_long)] = &[
    // Namespaces and mounts.
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("open_tree", libc::SYS_open_tree),
    ("move_mount", libc::SYS_move_mount),
    ("fsopen", libc::SYS_fsopen),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fspick", libc::SYS_fspick),
    ("mount_setattr", libc::SYS_mount_setattr),
    // Code and configuration of the kernel.
    ("bpf", libc::SYS_bpf),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("kexec_load", libc::SYS_kexec_load),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("reboot", libc::SYS_reboot),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    ("acct", libc::SYS_acct),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", 443),
    // What FS_IOC_FSSETXATTR does.
    ("file_setattr", 469),
    ("syslog", libc::SYS_syslog),
    ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname),
    ("settimeofday", libc::SYS_settimeofday),
    ("clock_settime", libc::SYS_clock_settime),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("adjtimex", libc::SYS_adjtimex),
    ("vhangup", libc::SYS_vhangup),
    ("nfsservctl", libc::SYS_nfsservctl),
    // Where exploits begin.
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("process_madvise", libc::SYS_process_madvise),
    ("kcmp", libc::SYS_kcmp),
    ("move_pages", libc::SYS_move_pages),
    ("migrate_pages", libc::SYS_migrate_pages),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("modify_ldt", libc::SYS_modify_ldt),
];

/// Requests of ioctl(2) that no workload may make.
const REQUESTS: &[u32] = &[
    // Typing into somebody's terminal, and pasting into the console.
    0x5412,
    0x541C,
    // Having its files counted as those of another project or of none, which FS_IOC_FSSETXATTR and
    // FS_IOC_SETFLAGS do, or in a btrfs subvolume or snapshot of its own, without a limit.
    0x401C_5820,
    0x4008_6602,
    0x4004_6602,
    0x5000_9401,
    0x5000_940E,
    0x5000_9417,
    0x5000_9418,
];

/// Address families a workload may open sockets of. Netlink is what getifaddrs asks.
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The filter.
pub fn program() -> Vec<sock_filter> {
    let mut code = vec![load(ARCH_FIELD), jump(BPF_JEQ, ARCH, 1, 0), ret(KILL), load(NR)];
    if cfg!(target_arch = "x86_64") {
        code.extend([jump(BPF_JGE, X32_FIRST, 0, 1), ret(ENOSYS)]);
    }
    for (_, call) in DENIED {
        code.extend([jump(BPF_JEQ, number(*call), 0, 1), ret(EPERM)]);
    }
    // glibc falls back to clone, whose flags a filter can read.
    code.extend([jump(BPF_JEQ, number(libc::SYS_clone3), 0, 1), ret(ENOSYS)]);
    code.extend(only_for(
        libc::SYS_clone,
        &[load(ARG0), jump(BPF_JSET, NEW_NAMESPACES, 0, 1), ret(EPERM), ret(ALLOW)],
    ));
    code.extend(only_for(libc::SYS_ioctl, &requests()));
    code.extend(only_for(libc::SYS_socket, &families()));
    code.push(ret(ALLOW));
    code
}

/// Whether the filter refuses a system call, given by its name or its number, whatever its arguments.
pub fn denies(call: &str) -> bool {
    let number = call.parse::<libc::c_long>().ok();
    DENIED.iter().any(|(name, denied)| *name == call || Some(*denied) == number)
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

fn requests() -> Vec<sock_filter> {
    let mut code = vec![load(ARG1)];
    for request in REQUESTS {
        code.extend([jump(BPF_JEQ, *request, 0, 1), ret(EPERM)]);
    }
    code.push(ret(ALLOW));
    code
}

fn families() -> Vec<sock_filter> {
    let mut code = vec![load(ARG0)];
    for family in FAMILIES {
        code.extend([jump(BPF_JEQ, family.unsigned_abs(), 0, 1), ret(ALLOW)]);
    }
    code.push(ret(EAFNOSUPPORT));
    code
}

/// `body` for one system call; every path through it must return.
fn only_for(call: libc::c_long, body: &[sock_filter]) -> Vec<sock_filter> {
    let skip = u8::try_from(body.len()).expect("bodies are short");
    let mut code = vec![jump(BPF_JEQ, number(call), 0, skip)];
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

fn jump(test: u32, value: u32, when_true: u8, when_false: u8) -> sock_filter {
    sock_filter { code: code(BPF_JMP | test | BPF_K), jt: when_true, jf: when_false, k: value }
}

fn ret(action: u32) -> sock_filter {
    sock_filter { code: code(BPF_RET | BPF_K), jt: 0, jf: 0, k: action }
}

fn code(bits: u32) -> u16 {
    u16::try_from(bits).expect("BPF operations have 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn verdict(arch: u32, nr: u32, args: [u64; 2]) -> u32 {
        let code = program();
        let (mut at, mut value) = (0, 0_u32);
        loop {
            let one = code[at];
            at += 1;
            let operation = u32::from(one.code);
            if operation == BPF_RET | BPF_K {
                return one.k;
            }
            if operation == BPF_LD | BPF_W | BPF_ABS {
                value = match one.k {
                    NR => nr,
                    ARCH_FIELD => arch,
                    ARG0 => u32::try_from(args[0] & 0xFFFF_FFFF).unwrap(),
                    ARG1 => u32::try_from(args[1] & 0xFFFF_FFFF).unwrap(),
                    other => panic!("loads offset {other}"),
                };
                continue;
            }
            let holds = match operation & 0xF0 {
                BPF_JEQ => value == one.k,
                BPF_JGE => value >= one.k,
                BPF_JSET => value & one.k != 0,
                other => panic!("jump {other}"),
            };
            at += usize::from(if holds { one.jt } else { one.jf });
        }
    }

    #[track_caller]
    fn check(call: libc::c_long, args: [u64; 2], want: u32) {
        assert_eq!(verdict(ARCH, number(call), args), want);
    }

    #[test]
    fn ordinary_work_is_allowed() {
        for call in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_futex] {
            check(call, [0, 0], ALLOW);
        }
        check(libc::SYS_clone, [0x3D_0F00, 0], ALLOW);
        check(libc::SYS_ioctl, [0, 0x5401], ALLOW);
        check(libc::SYS_socket, [2, 1], ALLOW);
    }

    #[test]
    fn ways_out_are_refused() {
        for call in DENIED {
            check(call.1, [0, 0], EPERM);
        }
        check(libc::SYS_clone, [0x1000_0000, 0], EPERM);
        check(libc::SYS_clone3, [0, 0], ENOSYS);
        // The kernel reads the low 32 bits of the request, so the high ones must not matter.
        check(libc::SYS_ioctl, [0, 0x5412], EPERM);
        check(libc::SYS_ioctl, [0, 0xFFFF_FFFF_0000_5412], EPERM);
        check(libc::SYS_ioctl, [0, 0x541C], EPERM);
        for request in REQUESTS {
            check(libc::SYS_ioctl, [0, u64::from(*request)], EPERM);
        }
        for family in [17, 38, 40] {
            check(libc::SYS_socket, [family, 1], EAFNOSUPPORT);
        }
    }

    #[test]
    fn other_architectures_and_twins_do_not_dodge_the_list() {
        assert_eq!(verdict(0x4000_0003, 21, [0, 0]), KILL);
        assert_eq!(verdict(ARCH, X32_FIRST | number(libc::SYS_mount), [0, 0]), ENOSYS);
    }
}
