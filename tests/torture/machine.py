"""A daemon in a directory of its own, and the machine as the kernel shows it."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

TOKEN = "a-token-for-torture"
GROUPS = Path("/sys/fs/cgroup")
START_SECONDS = 30


class Gone(Exception):
    """No answer: nobody knows whether it was done."""


class Answer:
    def __init__(self, status, body):
        self.status, self.body = status, body


class Target:
    """A process that cannot turn into another one of the same number."""

    def __init__(self, pid):
        self.pid = pid
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.fd = None

    def send(self, number):
        if self.fd is None:
            return
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            pass

    def __del__(self):
        if self.fd is not None:
            os.close(self.fd)


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def workspace(directory, uid):
    """Where the files of a sandbox are: in its volume, if it has one."""
    volume = Path(directory) / "sandboxes/.mounts" / uid / "files"
    return volume if volume.is_dir() else Path(directory) / "sandboxes" / uid


def digits(uid):
    """What the instances of a sandbox begin with."""
    return uid.replace("-", "")[-16:]


def unmount_below(directory):
    """Takes away what the daemon has mounted, the last mount first."""
    points = [line.split()[1] for line in read("/proc/mounts").decode().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{directory}/")]):
        subprocess.run(["umount", "-l", point], check=False)


def cgroup_leaves(group):
    return sorted(path for path in group.iterdir() if path.is_dir()) if group and group.is_dir() else []


def workload(leaf):
    """What the tenant runs, without what helps it."""
    return leaf / "workload"


def processes_of(leaf):
    return [int(pid) for pid in read(workload(leaf) / "cgroup.procs").split()]


def is_populated(leaf):
    return b"populated 1" in read(workload(leaf) / "cgroup.events")


def holders_of(directory):
    """Processes with an open file or working directory below it."""
    holders = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(path) for path in [process / "cwd", *(process / "fd").iterdir()]]
        except OSError:
            continue
        if any(link.startswith(directory) for link in links):
            holders.add((process.name, read(process / "cmdline")))
    return sorted(holders)


class Daemon:
    def __init__(self, program, runsc, directory):
        self.program = os.path.abspath(program)
        self.directory = Path(directory)
        self.directory.chmod(0o755)
        self.child, self.port = None, None
        self.group = None
        (self.directory / "desired").mkdir()
        config = {"port": 0, "token": TOKEN, "isolation_floor": "process", "run_path": "./run"}
        # Nobody else's, who may be tested meanwhile.
        config["uids"] = {"first": 2_060_000_000, "count": 100_000}
        config["gvisor"] = {"program": os.path.abspath(runsc)}
        (self.directory / "config.json").write_text(json.dumps(config))
        (self.directory / "config.json").chmod(0o600)

    @property
    def pid(self):
        return self.child.pid

    def start(self, wait=True):
        log = self.directory / "log"
        offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as err:
            command = [self.program, "run", "--config", str(self.directory / "config.json")]
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
        deadline = time.monotonic() + START_SECONDS
        while wait:
            said = re.search(rb"http://127\.0\.0\.1:(\d+)", log.read_bytes()[offset:])
            if said:
                self.port = int(said[1])
                return
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise Gone(f"the daemon did not start: {self.child.returncode}")
            time.sleep(0.01)

    def kill(self):
        self.child.kill()
        self.child.wait()

    def terminate(self):
        self.child.terminate()
        try:
            code = self.child.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            raise Gone("the daemon does not end when asked to") from None
        if code != 0:
            raise Gone(f"the daemon ended with {code} when asked to end")

    def must_live(self, gone):
        if self.child.poll() is not None:
            raise Gone(f"the daemon ended by itself with {self.child.returncode}: {gone}")
        raise gone

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request(method, path, body and json.dumps(body), {"Authorization": f"Bearer {TOKEN}"})
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            raise Gone(f"{method} {path}: {error!r}") from None
        finally:
            connection.close()
        if response.getheader("content-type", "").startswith("application/json"):
            return Answer(response.status, json.loads(content or b"null"))
        return Answer(response.status, content)

    def document(self, name, spec):
        return {"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec}

    def write_text(self, name, text):
        (self.directory / "desired" / f"{name}.yaml").write_text(text)

    def write_file(self, name, spec):
        path = self.directory / "desired" / f"{name}.yaml"
        path.with_suffix(".tmp").write_text(json.dumps(self.document(name, spec)))
        path.with_suffix(".tmp").rename(path)

    def remove_file(self, name):
        (self.directory / "desired" / f"{name}.yaml").unlink()

    def shims(self):
        """Each with its instance."""
        locks = (self.directory / "run" / "i").glob("*/lock")
        return [(int(text), path.parent.name) for path in locks if (text := read(path).strip())]

    def owns(self, pid):
        """Whether it is a shim of this daemon or runs in a cgroup of it."""
        if self.group and self.group.name.encode() in read(f"/proc/{pid}/cgroup"):
            return True
        return pid in dict(self.shims()) and read(f"/proc/{pid}/comm").strip() == b"sodium-shim"

    def find_group(self, pid):
        """Learns where the cgroups are, from a process that is in one."""
        found = re.search(rb"^0::(/.*)/[^/]+/workload$", read(f"/proc/{pid}/cgroup"), re.MULTILINE)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
        if found and mounts:
            self.group = Path(mounts[0] + found[1].decode())

    def log_end(self):
        return read(self.directory / "log")[-6000:].decode(errors="replace")

    def clean_up(self):
        """Whatever happened, nothing stays."""
        if self.child and self.child.poll() is None:
            self.kill()
        for pid, _ in self.shims():
            if self.owns(pid):
                Target(pid).send(signal.SIGKILL)
        if self.group is None:
            return
        for leaf in cgroup_leaves(self.group):
            (leaf / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + START_SECONDS
        while any(is_populated(leaf) for leaf in cgroup_leaves(self.group)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for path, _, _ in os.walk(GROUPS, topdown=False):
            if self.group.name in path:
                try:
                    os.rmdir(path)
                except OSError:
                    pass
