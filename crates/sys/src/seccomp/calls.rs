//! Every system call that the filter knows, by what it does with it. What is not here a sandbox's kernel does not have.
//!
//! Numbers are the C library's names for them, or written out where that has none: from 424 on they are the same on every
//! architecture.

use super::Rule;

/// Some system calls, by name and number, that are treated alike.
struct Group {
    rule: Rule,
    calls: &'static [(&'static str, libc::c_long)],
}

/// Names and numbers, from the constants of the C library.
macro_rules! calls {
    ($($call:ident)*) => { &[$((stringify!($call), libc::$call)),*] };
}

/// Each call with its name and number, in no order.
pub(super) fn all() -> impl Iterator<Item = (&'static str, libc::c_long, Rule)> {
    TABLE.iter().chain(OF_ARCHITECTURE).flat_map(|group| {
        group.calls.iter().map(move |(name, number)| {
            (name.strip_prefix("SYS_").unwrap_or(name), *number, group.rule)
        })
    })
}

const TABLE: &[Group] = &[
    // Files and directories: who may reach which is for the mount namespace, Landlock and modes to say.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2
            SYS_pwritev2 SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat
            SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_getdents64 SYS_getcwd
            SYS_chdir SYS_fchdir SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_linkat SYS_symlinkat SYS_renameat
            SYS_renameat2 SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_umask SYS_utimensat SYS_truncate
            SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_sync SYS_syncfs SYS_fsync SYS_fdatasync
            SYS_sync_file_range SYS_flock SYS_dup SYS_dup3 SYS_pipe2 SYS_sendfile SYS_splice SYS_tee
            SYS_vmsplice SYS_copy_file_range SYS_memfd_create SYS_inotify_init1 SYS_inotify_add_watch
            SYS_inotify_rm_watch SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr
            SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
        },
    },
    Group {
        rule: Rule::Allow,
        calls: &[
            ("fchmodat2", 452),
            ("setxattrat", 463),
            ("getxattrat", 464),
            ("listxattrat", 465),
            ("removexattrat", 466),
        ],
    },
    // Waiting, and clocks that are only read.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
            SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_timer_create
            SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_getitimer SYS_setitimer
            SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_times
            SYS_restart_syscall
        },
    },
    // Memory. Protection keys are V8's; sealing is the C library's.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mincore SYS_brk SYS_mlock
            SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_remap_file_pages SYS_pkey_mprotect
            SYS_pkey_alloc SYS_pkey_free SYS_mseal SYS_membarrier
        },
    },
    // The stack of return addresses that hardened programs ask the kernel for.
    Group { rule: Rule::Allow, calls: &[("map_shadow_stack", 453)] },
    // Processes, threads and signals. Only a process's own user may trace it, and read it so, which is how debuggers work;
    // the pid namespace or the user keeps it among the sandbox's. Confining itself further is everybody's right.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill
            SYS_pidfd_open SYS_pidfd_send_signal SYS_pidfd_getfd SYS_rt_sigaction SYS_rt_sigprocmask
            SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo
            SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_getpid SYS_getppid SYS_gettid SYS_set_tid_address SYS_getpgid
            SYS_setpgid SYS_getsid SYS_setsid SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list
            SYS_rseq SYS_ptrace SYS_process_vm_readv SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule
            SYS_landlock_restrict_self
        },
    },
    Group {
        rule: Rule::Allow,
        calls: &[("futex_wake", 454), ("futex_wait", 455), ("futex_requeue", 456)],
    },
    // Whom a process runs as, what it may use and when it runs: more than it has, the kernel gives to nobody here.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid
            SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid
            SYS_capget SYS_capset SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_getpriority
            SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_yield SYS_sched_getaffinity
            SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler
            SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max
            SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getcpu SYS_uname SYS_sysinfo SYS_getrandom
        },
    },
    // Sockets that are there, and what System V and POSIX have for two processes to talk.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername SYS_sendto
            SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_getsockopt SYS_shutdown
            SYS_shmget SYS_shmat SYS_shmctl SYS_shmdt SYS_semget SYS_semop SYS_semctl SYS_semtimedop SYS_msgget
            SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive
            SYS_mq_notify SYS_mq_getsetattr
        },
    },
    // Allowed for some of what they are given.
    Group { rule: Rule::Clone, calls: calls! { SYS_clone } },
    Group { rule: Rule::Fcntl, calls: calls! { SYS_fcntl } },
    Group { rule: Rule::Ioctl, calls: calls! { SYS_ioctl } },
    Group { rule: Rule::Personality, calls: calls! { SYS_personality } },
    Group { rule: Rule::Prctl, calls: calls! { SYS_prctl } },
    Group { rule: Rule::SetSockOpt, calls: calls! { SYS_setsockopt } },
    Group { rule: Rule::Socket, calls: calls! { SYS_socket } },
    Group { rule: Rule::SocketPair, calls: calls! { SYS_socketpair } },
    // Namespaces, mounts and other roots: the way to capabilities over a kernel that believes in them.
    Group {
        rule: Rule::Refuse,
        calls: calls! {
            SYS_unshare SYS_setns SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_open_tree SYS_move_mount
            SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_mount_setattr
        },
    },
    Group { rule: Rule::Refuse, calls: &[("open_tree_attr", 467)] },
    // Code and configuration of the kernel.
    Group {
        rule: Rule::Refuse,
        calls: calls! {
            SYS_bpf SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load SYS_reboot
            SYS_swapon SYS_swapoff SYS_acct SYS_quotactl SYS_quotactl_fd SYS_syslog SYS_sethostname
            SYS_setdomainname SYS_settimeofday SYS_clock_settime SYS_clock_adjtime SYS_adjtimex SYS_vhangup
        },
    },
    // Which project's quota a file counts for, like FS_IOC_FSSETXATTR.
    Group { rule: Rule::Refuse, calls: &[("file_setattr", 469)] },
    // Where exploits of the kernel begin: young, or rarely used and little looked at.
    Group {
        rule: Rule::Refuse,
        calls: calls! {
            SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_userfaultfd SYS_perf_event_open SYS_keyctl
            SYS_add_key SYS_request_key SYS_fanotify_init SYS_fanotify_mark SYS_open_by_handle_at
            SYS_name_to_handle_at SYS_process_vm_writev SYS_process_madvise SYS_kcmp
        },
    },
    // On which memory nodes pages lie: a tenant would choose another's. libnuma takes EPERM for a machine without nodes.
    Group {
        rule: Rule::Refuse,
        calls: calls! {
            SYS_mbind SYS_set_mempolicy SYS_get_mempolicy SYS_set_mempolicy_home_node SYS_move_pages SYS_migrate_pages
        },
    },
    // Asynchronous files of the old kind: what one sandbox sets up is taken from all of the host (fs.aio-max-nr), and
    // programs do without.
    Group {
        rule: Rule::Absent,
        calls: calls! {
            SYS_io_setup SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents
        },
    },
    // Looked at and left out: the C library does without clone3, whose flags no filter can read, and nobody here needs
    // the others. memfd_secret's memory is not the cgroup's to swap or dump, mounts and namespaces are listed by their
    // numbers on the host, and cachestat tells who else has read a shared file.
    Group {
        rule: Rule::Absent,
        calls: calls! { SYS_clone3 SYS_memfd_secret SYS_process_mrelease },
    },
    Group {
        rule: Rule::Absent,
        calls: &[
            ("cachestat", 451),
            ("statmount", 457),
            ("listmount", 458),
            ("lsm_get_self_attr", 459),
            ("lsm_set_self_attr", 460),
            ("lsm_list_modules", 461),
            ("file_getattr", 468),
            ("listns", 470),
            ("rseq_slice_yield", 471),
        ],
    },
];

#[cfg(target_arch = "x86_64")]
const OF_ARCHITECTURE: &[Group] = &[
    // What later architectures have only in a newer form.
    Group {
        rule: Rule::Allow,
        calls: calls! {
            SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_mkdir SYS_rmdir SYS_mknod
            SYS_unlink SYS_link SYS_symlink SYS_rename SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat
            SYS_pipe SYS_dup2 SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd
            SYS_inotify_init SYS_fork SYS_vfork SYS_getpgrp SYS_pause SYS_alarm SYS_time SYS_arch_prctl
        },
    },
    Group { rule: Rule::Absent, calls: &[("io_pgetevents", 333)] },
    // Ports of the machine, and segments, which only 16-bit programs use.
    Group { rule: Rule::Refuse, calls: calls! { SYS_iopl SYS_ioperm SYS_modify_ldt } },
    // Only the kernel's own code calls these, and a kernel that has them lets that pass by itself.
    Group { rule: Rule::Absent, calls: &[("uretprobe", 335), ("uprobe", 336)] },
];

#[cfg(target_arch = "aarch64")]
const OF_ARCHITECTURE: &[Group] = &[Group { rule: Rule::Absent, calls: &[("io_pgetevents", 292)] }];
