"""Disks: what keeps their limits on each file system, what a workload meets there, and that nothing of it stays."""

import ast
import contextlib
import ctypes
import json
import os
import re
import struct
import tempfile
from pathlib import Path

from guest import Daemon, eventually, read, rule, run

MACHINES = ["plain"]

MIB = 1 << 20
# Of it, the console has a quarter.
DISK_MB = 32
FILES_MB = 24
NO_ROOM = {"ENOSPC", "EDQUOT"}
LIBC = ctypes.CDLL(None, use_errno=True)
SYS_QUOTACTL_FD, NEXT_PROJECT = 443, 0x800009 << 8 | 2

FILL = """import errno, os, shutil
home = os.environ['HOME']
tmp = os.environ.get('TMPDIR', '/tmp')
def fill(path, most=100):
    '''Until there is no room, or so many MiB; what the file holds, and why not more.'''
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            while (left := (most << 20) - os.fstat(file).st_size) > 0:
                os.write(file, b'x' * min(left, 1 << 20))
                os.fsync(file)
        finally:
            size = os.fstat(file).st_size >> 20
            os.close(file)
        return size, 'nothing'
    except OSError as error:
        return os.path.exists(path) and os.stat(path).st_size >> 20, errno.errorcode[error.errno]
def make(where, most=6000):
    os.mkdir(where)
    for count in range(most):
        try:
            open(f'{where}/{count}', 'x').close()
        except OSError as error:
            return count, errno.errorcode[error.errno]
    return most, 'nothing'
def clear():
    for path in [f'{where}/{name}' for where in (home, tmp) for name in os.listdir(where)]:
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
"""
# It outlives everything that is done beside it.
STAYS = ["sh", "-c", "echo started; while sleep 1; do :; done"]


@contextlib.contextmanager
def ground(make=(), options="defaults", megabytes=400):
    """A file system of its own on a loop device, open to nobody else; without `make`, a directory of the machine's."""
    at = Path(tempfile.mkdtemp(prefix="disk-", dir="/var/lib"))
    at.chmod(0o755)
    if not make:
        yield at
        run("rm", "-r", at)
        return
    image = at.with_suffix(".raw")
    with image.open("wb") as file:
        file.truncate(megabytes * MIB)
    device = None
    try:
        run(*make, str(image))
        device = run("losetup", "--find", "--show", str(image)).strip()
        run("mount", "-o", options, device, str(at))
        at.chmod(0o700)
        yield at
        # Whatever still held something of it would be in the way here.
        run("umount", str(at))
    finally:
        run("umount", "-R", "-l", str(at), check=False)
        if device:
            run("losetup", "--detach", device, check=False)
        image.unlink(missing_ok=True)
        run("rm", "-rf", "--one-file-system", str(at), check=False)


def daemon_on(at, **config):
    own = {"sandboxes_path": str(at / "sandboxes"), "isolation_floor": "process", "disk": {"reserve_mb": 0}}
    return Daemon(**(own | config))


XFS = {"make": ["mkfs.xfs", "-q"], "options": "prjquota"}
EXT4 = {"make": ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "options": "prjquota"}
BTRFS = {"make": ["mkfs.btrfs", "-q"]}
PLAIN_EXT4 = {"make": ["mkfs.ext4", "-q"]}


def projects(at):
    """Those with a limit, and what it is in bytes."""
    found, number = {}, 1
    where = os.open(at, os.O_RDONLY)
    try:
        while True:
            quota = ctypes.create_string_buffer(80)
            if LIBC.syscall(SYS_QUOTACTL_FD, where, NEXT_PROJECT, number, quota) < 0:
                return found
            fields = struct.unpack_from("8QII", quota.raw)
            if fields[0] or fields[3]:
                found[fields[9]] = fields[0] * 1024
            number = fields[9] + 1
    finally:
        os.close(where)


def inside(daemon, name, expression):
    """What a program in the sandbox says, as Python has it."""
    body = {"command": ["python3", "-c", f"{FILL}\nprint(repr({expression}))"]}
    status, said = daemon.ask("POST", f"/v1/sandboxes/{name}/exec", body)
    assert status == 200 and said["stdout"], said
    return ast.literal_eval(said["stdout"].strip().splitlines()[-1])


def disk(daemon, name):
    return daemon.ledger(name)["disk_mb"]


def declare(daemon, name, isolation="bubblewrap", disk_mb=DISK_MB, **spec):
    daemon.declare(name, STAYS, isolation, {"disk_mb": disk_mb}, **({"strict": True} | spec))
    daemon.wait_logs(name, "started")
    return daemon.pid(name)


def is_kept(daemon, name, mechanism, disk_mb=DISK_MB):
    entry = disk(daemon, name)
    assert entry["mechanism"].startswith(mechanism), entry
    assert (entry["verdict"], entry["read_back"], entry["reason"]) == ("enforced", disk_mb, ""), entry


def is_full_at_its_limit(daemon, name, inodes=True, tmp=True):
    """Fills the workspace, then /tmp, then makes files; what runs lives on, and goes on when there is room again."""
    pid = daemon.pid(name)
    for first, second in [("home", "tmp"), ("tmp", "home")] if tmp else [("home", "")]:
        held, refusal = inside(daemon, name, f"fill({first} + '/big')")
        assert FILES_MB - 8 <= held <= FILES_MB and refusal in NO_ROOM, (first, held, refusal)
        # The other one is in the same volume.
        held, refusal = inside(daemon, name, f"fill({second} + '/more')") if tmp else (0, "ENOSPC")
        assert held <= 1 and refusal in NO_ROOM, (second, held, refusal)
        inside(daemon, name, "clear()")
    if inodes:
        made, refusal = inside(daemon, name, "make(home + '/many')")
        assert 900 <= made <= 1600 and refusal in NO_ROOM, (made, refusal)
        inside(daemon, name, "clear()")
    assert inside(daemon, name, "fill(home + '/small', 2)") == (2, "nothing")
    assert daemon.pid(name) == pid


def takes_another_limit_at_once(daemon, name, mechanism, **spec):
    pid = daemon.pid(name)
    before = inside(daemon, name, "fill(home + '/big')")[0]
    daemon.declare(name, STAYS, limits={"disk_mb": 2 * DISK_MB}, **({"strict": True} | spec))
    eventually("the larger limit", lambda: disk(daemon, name)["read_back"] == 2 * DISK_MB)
    is_kept(daemon, name, mechanism, 2 * DISK_MB)
    more = inside(daemon, name, "fill(home + '/more')")[0]
    assert before + more >= 2 * FILES_MB - 10, (before, more)
    assert daemon.pid(name) == pid


def says_why_not_less(daemon, name, mechanism, **spec):
    """Of a limit below what it holds: what runs is let be until it holds less."""
    pid = daemon.pid(name)
    daemon.declare(name, STAYS, limits={"disk_mb": DISK_MB}, **({"strict": True} | spec))
    daemon.wait(name, "told why not", lambda status: "disk_mb refused: below current use" in json.dumps(status))
    assert disk(daemon, name)["read_back"] == 2 * DISK_MB and daemon.pid(name) == pid
    inside(daemon, name, "clear()")
    eventually("the smaller limit", lambda: disk(daemon, name)["read_back"] == DISK_MB)
    is_kept(daemon, name, mechanism)


def survives(daemon, name):
    """The death of the daemon, and a restart while it is full."""
    inside(daemon, name, "open(home + '/mine', 'w').write('kept')")
    inside(daemon, name, "fill(home + '/big')")
    pid = daemon.pid(name)
    daemon.kill()
    daemon.start()
    assert daemon.pid(name) == pid
    mine = "open(home + '/mine').read()"
    assert inside(daemon, name, mine) == "kept"
    restart(daemon, name)
    assert inside(daemon, name, mine) == "kept"
    inside(daemon, name, "clear()")


def restart(daemon, name, phases=("Running",)):
    """Until another runs, or what else it may come to."""
    pid = daemon.pid(name)
    daemon.ask("POST", f"/v1/sandboxes/{name}/restart?wait=40s")

    def another(status):
        is_old = status["phase"] == "Running" and status["instance"]["pid"] == pid
        return status["phase"] in phases and not is_old

    return daemon.wait(name, "another", another)


def mend(daemon, name):
    """Starts it again. What was lost decides whether that loses nothing more, or is left to a person, who does as is said."""
    daemon.expects("hint: `e2fsck")
    status = restart(daemon, name, ("Running", "Failed"))
    if status["phase"] == "Failed":
        hint = re.search(r"hint: `(e2fsck [^`]*)`", json.dumps(status))[1]
        # It says by its status what it has mended.
        run(*hint.split(), check=False)
        daemon.ask("POST", f"/v1/sandboxes/{name}/restart?wait=40s")
        daemon.wait_phase(name, "Running")


def leaves_nothing(daemon, at):
    for one in daemon.ask("GET", "/v1/sandboxes")[1]["items"]:
        daemon.delete(one["metadata"]["name"])
    sandboxes = at / "sandboxes"
    left = sorted(str(path.relative_to(sandboxes)) for path in sandboxes.rglob("*") if path.parent.name != ".templates")
    assert set(left) <= {".disk", ".disk/.templates", ".mounts", "lock"}, left
    mounts = [line for line in read("/proc/self/mountinfo").splitlines() if str(sandboxes) in line]
    assert not mounts, mounts
    attached = [line for line in run("losetup", "--all").splitlines() if ".img" in line]
    assert not attached, attached
    assert not projects(at), projects(at)
    if "btrfs" in run("findmnt", "-n", "-o", "FSTYPE", "-T", str(at)):
        # Its cleaner takes its time.
        eventually("qgroups are gone", lambda: run("btrfs", "qgroup", "show", "--sync", str(at)).count("0/") == 1)


def keeps_disks(place, mechanism, inodes=True):
    with ground(**place) as at, daemon_on(at).start() as daemon:
        declare(daemon, "web")
        declare(daemon, "neighbour")
        is_kept(daemon, "web", mechanism)
        is_full_at_its_limit(daemon, "web", inodes)
        inside(daemon, "web", "fill(home + '/big')")
        assert inside(daemon, "neighbour", "fill(home + '/own', 8)") == (8, "nothing")
        inside(daemon, "web", "clear()")
        takes_another_limit_at_once(daemon, "web", mechanism)
        says_why_not_less(daemon, "web", mechanism)
        survives(daemon, "neighbour")
        leaves_nothing(daemon, at)


@rule
def xfs_keeps_disks_by_its_quotas_of_projects():
    keeps_disks(XFS, "project quota")


@rule
def ext4_keeps_disks_by_its_quotas_of_projects():
    keeps_disks(EXT4, "project quota")


@rule
def where_others_may_have_files_no_quota_of_a_project_is_taken():
    for choice, mechanism in [("auto", "ext4 image on a loop device"), ("quota", "project quota")]:
        with ground(**XFS) as at:
            at.chmod(0o755)
            with daemon_on(at, disk={"reserve_mb": 0, "mechanism": choice}).start() as daemon:
                declare(daemon, "web")
                is_kept(daemon, "web", mechanism)
                daemon.delete("web")


@rule
def btrfs_keeps_disks_by_its_qgroups():
    keeps_disks(BTRFS, "btrfs qgroup", inodes=False)


@rule
def a_file_system_without_quotas_keeps_disks_by_images():
    keeps_disks(PLAIN_EXT4, "ext4 image on a loop device")


@rule
def a_plain_process_and_gvisor_are_kept_by_quotas_too():
    with ground(**XFS) as at, daemon_on(at, gvisor={"platform": "systrap"}).start() as daemon:
        for isolation in ["process", "gvisor"]:
            declare(daemon, isolation, isolation)
            is_kept(daemon, isolation, "project quota")
            is_full_at_its_limit(daemon, isolation, tmp=isolation != "gvisor")
        leaves_nothing(daemon, at)


@rule
def what_is_ephemeral_is_in_memory_and_gone_with_its_end():
    with ground() as at, daemon_on(at).start() as daemon:
        pid = declare(daemon, "web", ephemeral=True)
        is_kept(daemon, "web", "tmpfs")
        is_full_at_its_limit(daemon, "web")
        inside(daemon, "web", "open(home + '/mine', 'w').write('kept')")
        daemon.kill()
        daemon.start()
        assert daemon.pid("web") == pid
        assert inside(daemon, "web", "open(home + '/mine').read()") == "kept"
        takes_another_limit_at_once(daemon, "web", "tmpfs", ephemeral=True)
        says_why_not_less(daemon, "web", "tmpfs", ephemeral=True)
        inside(daemon, "web", "open(home + '/mine', 'w').write('gone')")
        restart(daemon, "web")
        assert inside(daemon, "web", "os.listdir(home)") == []
        leaves_nothing(daemon, at)


@rule
def an_image_whose_host_was_full_is_mended_by_the_next_start():
    with ground(PLAIN_EXT4["make"], megabytes=96) as at, daemon_on(at).start() as daemon:
        declare(daemon, "web", disk_mb=48)
        inside(daemon, "web", "fill(home + '/mine', 2)")
        hog = at / "hog"
        with hog.open("wb", 0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        assert inside(daemon, "web", "fill(home + '/big')")[1] in NO_ROOM | {"EIO", "EROFS"}
        hog.unlink()
        mend(daemon, "web")
        assert inside(daemon, "web", "os.stat(home + '/mine').st_size >> 20") == 2
        inside(daemon, "web", "clear()")
        assert inside(daemon, "web", "fill(home + '/big', 8)") == (8, "nothing")
        is_kept(daemon, "web", "ext4 image", 48)
        leaves_nothing(daemon, at)


@rule
def a_tenant_cannot_have_its_files_counted_elsewhere():
    """As those of another project or of none, or in a subvolume without a limit."""
    program = """import errno, fcntl, os
def tries(request, argument):
    try:
        fcntl.ioctl(here, request, argument)
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
here = os.open(os.environ['HOME'], os.O_RDONLY)
project = bytes(12) + (7).to_bytes(4, 'little') + bytes(12)
print(tries(0x401C5820, project), tries(0x40086602, bytes(8)), tries(0x5000940E, bytearray(8) + b'sub' + bytearray(4085)))
"""
    refused = {"EPERM"}
    for place in [EXT4, BTRFS]:
        with ground(**place) as at, daemon_on(at).start() as daemon:
            for isolation in ["process", "bubblewrap"]:
                declare(daemon, isolation, isolation)
                status, said = daemon.ask("POST", f"/v1/sandboxes/{isolation}/exec", {"command": ["python3", "-c", program]})
                own = said["stdout"].split()
                assert status == 200 and len(own) == 3 and set(own) <= refused, said
            leaves_nothing(daemon, at)
