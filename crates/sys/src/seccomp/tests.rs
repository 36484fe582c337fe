//! Interprets the filter, and compares what it answers with the table.

use super::*;

/// Nothing the kernel has is numbered higher, nor will be for some time.
const NUMBERS: u32 = 600;
const X32_FIRST: u32 = 0x4000_0000;

/// Runs the filter as the kernel would: the answer, and after how many instructions.
fn run(arch: u32, nr: u32, args: [u64; 3]) -> (u32, usize) {
    let code = program();
    let (mut at, mut value) = (0, 0_u32);
    let low = |arg: u64| u32::try_from(arg & 0xFFFF_FFFF).unwrap();
    for steps in 1.. {
        let one = code[at];
        at += 1;
        let operation = u32::from(one.code);
        if operation == BPF_RET | BPF_K {
            return (one.k, steps);
        } else if operation == BPF_LD | BPF_W | BPF_ABS {
            value = match one.k {
                NR => nr,
                ARCH_FIELD => arch,
                ARG0 => low(args[0]),
                ARG1 => low(args[1]),
                ARG2 => low(args[2]),
                other => panic!("loads offset {other}"),
            };
        } else if operation == BPF_ALU | BPF_AND | BPF_K {
            value &= one.k;
        } else if operation == BPF_JMP | BPF_JA {
            at += usize::try_from(one.k).unwrap();
        } else {
            let holds = match operation & !BPF_JMP {
                BPF_JEQ => value == one.k,
                BPF_JGE => value >= one.k,
                BPF_JSET => value & one.k != 0,
                other => panic!("jump {other}"),
            };
            at += usize::from(if holds { one.jt } else { one.jf });
        }
    }
    unreachable!("each path returns")
}

fn verdict(call: libc::c_long, args: [u64; 3]) -> u32 {
    run(ARCH, number(call), args).0
}

#[track_caller]
fn check(call: libc::c_long, args: [u64; 3], want: u32) {
    assert_eq!(verdict(call, args), want, "{call} {args:X?}");
}

/// The number of a call in the table.
fn listed(name: &str) -> libc::c_long {
    calls::all().find(|(found, ..)| *found == name).unwrap().1
}

#[test]
fn every_number_is_answered_as_the_table_has_it() {
    for nr in 0..=NUMBERS {
        let rules: Vec<Rule> = calls::all()
            .filter(|(_, call, _)| number(*call) == nr)
            .map(|(.., rule)| rule)
            .collect();
        assert!(rules.len() <= 1, "{nr} is listed twice");
        let want = match rules.first() {
            Some(
                Rule::Allow
                | Rule::Clone
                | Rule::Fcntl
                | Rule::Ioctl
                | Rule::Personality
                | Rule::Prctl
                | Rule::SetSockOpt,
            ) => ALLOW,
            Some(Rule::Refuse) => EPERM,
            Some(Rule::Absent) | None => ENOSYS,
            // With zeros for arguments it is of no family.
            Some(Rule::Socket | Rule::SocketPair) => EAFNOSUPPORT,
        };
        assert_eq!(run(ARCH, nr, [0; 3]).0, want, "{nr}");
        // Twins do not dodge it.
        assert_eq!(run(ARCH, X32_FIRST | nr, [0; 3]).0, ENOSYS, "{nr}");
    }
    assert!(calls::all().all(|(_, call, _)| number(call) < NUMBERS));
    assert_eq!(run(ARCH, u32::MAX, [0; 3]).0, ENOSYS);
}

#[test]
fn other_architectures_do_not_dodge_the_list() {
    assert_eq!(run(0x4000_0003, 21, [0; 3]).0, KILL);
}

#[test]
fn the_answer_is_found_in_few_steps() {
    let steps = (0..=NUMBERS).map(|nr| run(ARCH, nr, [u64::MAX; 3]).1).max().unwrap();
    assert!(steps <= 48, "{steps} instructions for one call");
    assert!(program().len() < 1024, "{} instructions", program().len());
}

#[test]
fn ordinary_work_is_allowed() {
    let ordinary = "read openat execve futex futex_waitv epoll_pwait2 close_range faccessat2 \
        openat2 pidfd_open pidfd_send_signal rseq statx landlock_restrict_self \
        memfd_create copy_file_range fchmodat2 mseal membarrier ptrace seccomp";
    for name in ordinary.split(' ') {
        check(listed(name), [0; 3], ALLOW);
        assert!(!denies(name), "{name}");
    }
    check(libc::SYS_clone, [0x3D_0F00, 0, 0], ALLOW);
    check(libc::SYS_ioctl, [0, 0x5401, 0], ALLOW);
    // With PR_SET_NAME.
    check(libc::SYS_prctl, [15, 0, 0], ALLOW);
}

#[test]
fn ways_out_are_refused() {
    for name in ["mount", "unshare", "setns", "open_tree_attr", "mbind", "io_uring_setup", "bpf"] {
        check(listed(name), [0; 3], EPERM);
        assert!(denies(name), "{name}");
    }
    assert!(refused().count() > 50 && refused().all(|(name, _)| denies(name)));
    // What nobody knows yet, and clone3, which the C library does without.
    assert!(denies("590") && denies("a_call_of_tomorrow") && denies("clone3"));
    check(libc::SYS_clone3, [0; 3], ENOSYS);
    check(libc::SYS_clone, [0x1000_0000, 0, 0], EPERM);
    // The kernel reads the low 32 bits of the request, so the high ones must not matter.
    check(libc::SYS_ioctl, [0, 0xFFFF_FFFF_0000_5412, 0], EPERM);
    for request in REQUESTS {
        check(libc::SYS_ioctl, [0, u64::from(*request), 0], EPERM);
    }
    for operation in OPERATIONS {
        check(libc::SYS_prctl, [u64::from(*operation), 0, 0], EPERM);
    }
    for option in FILTER_OPTIONS {
        check(libc::SYS_setsockopt, [3, 1, u64::from(*option)], EPERM);
        // Of TCP's, for one, these numbers are others.
        check(libc::SYS_setsockopt, [3, 6, u64::from(*option)], ALLOW);
    }
    check(libc::SYS_setsockopt, [3, 1, 2], ALLOW);
    for persona in [0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF] {
        check(libc::SYS_personality, [persona, 0, 0], ALLOW);
    }
    // ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO.
    for persona in [0x4_0000, 0x40_0000, 0x10_0000] {
        check(libc::SYS_personality, [persona, 0, 0], EPERM);
    }
    for (command, want) in
        [(libc::F_SETLEASE, EPERM), (libc::F_GETLEASE, ALLOW), (libc::F_SETFD, ALLOW)]
    {
        check(libc::SYS_fcntl, [3, u64::from(command.unsigned_abs()), 1], want);
    }
}

/// By numbers of its own: what the table loses is not looked for there.
#[cfg(target_arch = "x86_64")]
#[test]
fn each_number_that_was_ever_closed_still_is() {
    // From syslog(2) to file_setattr(2), and among them bpf, perf_event_open, open_by_handle_at, io_uring.
    let refused = [
        103, 153, 154, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175,
        176, 179, 227, 237, 238, 239, 246, 248, 249, 250, 256, 272, 279, 298, 300, 301, 303, 304,
        305, 308, 311, 312, 313, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 433, 440,
        442, 443, 450, 467, 469,
    ];
    let absent = [
        206, 207, 208, 209, 210, 333, 335, 336, 435, 447, 448, 451, 457, 458, 459, 460, 461, 468,
        470, 471,
    ];
    for (numbers, want) in [(&refused[..], EPERM), (&absent[..], ENOSYS)] {
        for nr in numbers {
            assert_eq!(run(ARCH, *nr, [0; 3]).0, want, "{nr}");
            assert!(denies(&nr.to_string()), "{nr}");
        }
    }
    let mut in_table: Vec<u32> = super::refused().map(|(_, call)| number(call)).collect();
    in_table.sort_unstable();
    assert_eq!(in_table, refused, "what is newly refused is to be kept in mind here, too");
}

#[test]
fn sockets_are_of_known_families_kinds_and_protocols() {
    const FLAGS: u64 = 0x8_0800;
    let check = |arguments, want| check(libc::SYS_socket, arguments, want);
    for family in [2, 10] {
        for (kind, protocol) in [(1, 0), (1, 6), (2, 0), (2, 17), (2, 1), (2, 58), (3, 1)] {
            check([family, kind | FLAGS, protocol], ALLOW);
        }
        // SCTP by its protocol and by its kind, DCCP, MPTCP.
        check([family, 1, 132], EPROTONOSUPPORT);
        check([family, 5 | FLAGS, 0], ESOCKTNOSUPPORT);
        check([family, 6, 0], ESOCKTNOSUPPORT);
        check([family, 1, 262], EPROTONOSUPPORT);
        // A packet socket by its old name.
        check([family, 10, 0x300], ESOCKTNOSUPPORT);
    }
    check([1, 5, 0], ALLOW);
    check([16, 3 | FLAGS, 0], ALLOW);
    for protocol in [4, 9, 12, 15, 16] {
        check([16, 3, protocol], EPROTONOSUPPORT);
    }
    // Packets, AF_ALG, virtual machines, XDP.
    for family in [17, 38, 40, 44] {
        check([family, 1, 0], EAFNOSUPPORT);
    }
    for (family, want) in [(1, ALLOW), (2, EAFNOSUPPORT), (16, EAFNOSUPPORT), (30, EAFNOSUPPORT)] {
        assert_eq!(verdict(libc::SYS_socketpair, [family, 1, 0]), want);
    }
}
