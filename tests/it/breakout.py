"""Tries to get out of a sandbox. Prints the name of each attempt that came anywhere, then "tried"."""

import ctypes
import fcntl
import os
import socket
import subprocess
import sys

OUTSIDE, HOST_PID, GVISOR = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "gvisor"
libc = ctypes.CDLL(None, use_errno=True)


def syscall(*args):
    if libc.syscall(*args) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def escape_by_symlink():
    os.symlink(OUTSIDE, "out")
    open("out/secret").read()


def read_a_disk():
    os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
    open("/tmp/disk", "rb").read(1)


def terminal_input():
    fcntl.ioctl(0, 0x5412, b"x")


attempts = {
    # First: others leave some open.
    "find a descriptor left open": lambda: os.fstat(3),
    "read a file of the host": lambda: open(f"{OUTSIDE}/secret").read(),
    "read it by a symlink": escape_by_symlink,
    "read it through a process": lambda: open(f"/proc/1/root{OUTSIDE}/secret").read(),
    "read the shadow file": lambda: open("/etc/shadow").read(),
    "list root's home": lambda: os.listdir("/root"),
    "write to /usr": lambda: write("/usr/breakout", ""),
    "write to the root": lambda: write("/breakout", ""),
    "read a disk": read_a_disk,
    "open the kernel's memory": lambda: open("/dev/mem", "rb"),
    "open kvm": lambda: open("/dev/kvm", "rb"),
    "mount": lambda: syscall(165, b"none", b"/tmp", b"tmpfs", 0, None),
    "change the root": lambda: os.chroot("/tmp"),
    "become root": lambda: os.setuid(0),
    "load a module": lambda: syscall(175, b"x", 1, b""),
    "load a program into the kernel": lambda: syscall(321, 5, b"\0" * 128, 128),
    "write a sysctl": lambda: write("/proc/sys/kernel/core_pattern", "|/tmp/x"),
    "reboot": lambda: write("/proc/sysrq-trigger", "h"),
    "write to /sys": lambda: write("/sys/kernel/uevent_helper", "/tmp/x"),
    "join the host's namespaces": lambda: syscall(308, os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "signal a process of the host": lambda: os.kill(HOST_PID, 0),
    "trace a process of the host": lambda: syscall(101, 16, HOST_PID, 0, 0),
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "reach a network": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "reach the host's loopback": lambda: socket.create_connection(("127.0.0.1", HOST_PID % 1000 + 8000), timeout=1),
    "push input to a terminal": terminal_input,
    "raise a limit": lambda: __import__("resource").setrlimit(7, (1 << 16, 1 << 16)),
}
if not GVISOR:
    # In gVisor these ask a kernel that is the guest's own.
    attempts["use io_uring"] = lambda: syscall(425, 4, b"\0" * 120)
    attempts["make a user namespace"] = lambda: run("unshare", "-U", "true")
    attempts["use the kernel's keyring"] = lambda: syscall(250, 0, -3, 1)

for name, attempt in attempts.items():
    try:
        attempt()
        print("came out:", name)
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
print("tried")
