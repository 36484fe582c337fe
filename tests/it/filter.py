"""Asks for what the filter should refuse. Prints what was answered otherwise, then "asked"."""

import ctypes
import errno
import fcntl
import socket

libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def expect(what, want, attempt):
    try:
        attempt()
        got = 0
    except OSError as error:
        got = error.errno
    if got != want:
        print(what, "was answered", errno.errorcode.get(got, got), "and not", errno.errorcode.get(want, want))


# A number, the error that it should give, and arguments.
for line in open("calls"):
    number, want, *arguments = map(int, line.split())
    longs = [ctypes.c_long(argument) for argument in [number, *arguments, 0, 0, 0, 0, 0, 0][:7]]
    expect(f"system call {number}", want, lambda: check(libc.syscall(*longs)))

for request in [0x5412, 0x541C, 0x541D, 0x5423, 0x40086602, 0x401C5820, 0x5000940E, 0x800C6613]:
    expect(f"ioctl {request:#x}", errno.EPERM, lambda: fcntl.ioctl(0, request, bytes(128)))
for persona, want in [(0x0040000, errno.EPERM), (0x0400000, errno.EPERM), (0x0100000, errno.EPERM), (0xFFFFFFFF, 0), (0, 0)]:
    expect(f"personality {persona:#x}", want, lambda: check(libc.personality(ctypes.c_ulong(persona))))
for command, want in [(1024, errno.EPERM), (1026, errno.EPERM), (1040, errno.EPERM), (1025, 0)]:
    expect(f"fcntl {command}", want, lambda: fcntl.fcntl(0, command, 0))
expect("prctl PR_SET_MM", errno.EPERM, lambda: check(libc.prctl(35, 1, 0, 0, 0)))
expect("prctl PR_SCHED_CORE", errno.EPERM, lambda: check(libc.prctl(62, 1, 0, 0, 0)))
for option in [26, 50, 51, 52]:
    expect(f"setsockopt {option}", errno.EPERM, lambda: socket.socket(socket.AF_UNIX).setsockopt(1, option, bytes(16)))
for family, kind, protocol, want in [
    (1, 1, 0, 0),
    (2, 1, 0, 0),
    (2, 2, 17, 0),
    (10, 1, 6, 0),
    (16, 3, 0, 0),
    # Audit, netfilter, events of devices; packets, the kernel's cryptography, virtual machines, Bluetooth, XDP.
    (16, 3, 9, errno.EPROTONOSUPPORT),
    (16, 3, 12, errno.EPROTONOSUPPORT),
    (16, 3, 15, errno.EPROTONOSUPPORT),
    (17, 3, 0, errno.EAFNOSUPPORT),
    (38, 5, 0, errno.EAFNOSUPPORT),
    (40, 1, 0, errno.EAFNOSUPPORT),
    (31, 3, 1, errno.EAFNOSUPPORT),
    (44, 3, 0, errno.EAFNOSUPPORT),
    # SCTP, DCCP, raw ICMP.
    (2, 1, 132, errno.EPROTONOSUPPORT),
    (2, 5, 0, errno.ESOCKTNOSUPPORT),
    (2, 6, 0, errno.ESOCKTNOSUPPORT),
    (2, 3, 1, errno.EPERM),
]:
    expect(f"socket {family} {kind} {protocol}", want, lambda: socket.socket(family, kind, protocol).close())
expect("socketpair", errno.EAFNOSUPPORT, lambda: socket.socketpair(30, 1, 0))
print("asked")
