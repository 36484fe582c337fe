"""What the rules of the guest share: how a rule is declared, and a daemon in a directory of its own."""

import http.client
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

TOKEN = "a-token-for-the-guest"
PAYLOAD = Path("/payload")
GROUPS = Path("/sys/fs/cgroup")
MACHINE = "systemd" if Path("/run/systemd/system").is_dir() else "plain"
# Longer than anything takes in an emulated machine whose host is busy.
PATIENCE = 240
# An ordinary user, whom the machine knows as tenant.
USER = 1500

RULES = []


def rule(function):
    """Has it run, in the order of the file. Its name is what it says."""
    RULES.append(function)
    return function


def eventually(what, look, seconds=PATIENCE):
    """What `look` returns as soon as that is true; what it last returned is said if it never is."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return seen


def run(*command, check=True):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
    return done.stdout


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def group_of(pid):
    """The directory of the process's cgroup."""
    return GROUPS / read(f"/proc/{pid}/cgroup").strip().removeprefix("0::/")


def family_of(pid):
    """The group of the instance that the process is the workload of."""
    group = group_of(pid)
    assert group.name == "workload", group
    return group.parent


def alive(pid):
    return read(f"/proc/{pid}/stat").rpartition(")")[2][1:2] not in ("", "Z", "X")


def processes():
    """Every process but the kernel's own, with its command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        if line := read(path / "cmdline"):
            found[int(path.name)] = line.replace("\0", " ").strip()
    return found


def journal(*which):
    """What daemons of the unit have said."""
    return run("journalctl", "-u", "sodiumd", "-o", "cat", "--no-pager", *which, check=False)


def complaints(log):
    """What a daemon has warned of."""
    return [line for line in log.splitlines() if " WARN " in line or " ERROR " in line]


class Daemon:
    """A real daemon. As a context, it leaves nothing behind, and says so if it does."""

    def __init__(self, user=None, **config):
        self.user, self.child, self.port, self.expected = user, None, None, []
        self.path = Path(tempfile.mkdtemp(prefix="sodium-", dir="/var/lib"))
        self.path.chmod(0o755)
        (self.path / "desired").mkdir()
        # What gVisor can do here is not tried by each of them.
        usual = {"port": 0, "token": TOKEN, "run_path": "./run", "gvisor": {"program": "/nowhere/runsc"}}
        (self.path / "config.json").write_text(json.dumps(usual | config))
        (self.path / "config.json").chmod(0o600)
        if user:
            for path in [self.path, *self.path.iterdir()]:
                os.chown(path, user, user)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error:
            print(self.log()[-4000:])
            self.abandon()
        else:
            self.end()

    def start(self, group=None, within=()):
        """Starts it, inside a cgroup or by another program if one is named, and waits until it answers."""
        log = self.path / "log"
        offset = len(read(log))
        command = [PAYLOAD / "bin/sodiumd", "run", "--config", self.path / "config.json"]
        if self.user:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *within, *command]
        if group:
            command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
        with log.open("ab") as out:
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

        def listens():
            assert self.child.poll() is None, f"it ended: {read(log)[offset:]}"
            return re.search(r"http://127\.0\.0\.1:(\d+)", read(log)[offset:])

        self.port = int(eventually("the daemon listens", listens)[1])
        return self

    def expects(self, text):
        """Lines of its log with this are no complaint."""
        self.expected.append(text)

    def log(self):
        return read(self.path / "log")

    def main_pid(self):
        return self.child.pid

    def kill(self):
        self.child.kill()
        self.child.wait()

    def terminate(self):
        self.child.terminate()
        assert self.child.wait(PATIENCE) == 0

    def ask(self, method, path, body=None):
        """The status, and what was answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body and json.dumps(body), {"Authorization": f"Bearer {TOKEN}"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        return response.status, json.loads(text) if text[:1] in ("{", "[") else text

    def declare(self, name, command, isolation="bubblewrap", limits=None, **spec):
        """Without a disk limit, unless one is asked for."""
        limits = {"disk_mb": 0, "timeout_seconds": 0} | (limits or {})
        spec = {"command": command, "isolation": isolation, "limits": limits, "restart": {"policy": "never"}} | spec
        document = {"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name}, "spec": spec}
        status, said = self.ask("PUT", f"/v1/sandboxes/{name}", document)
        assert status in (200, 201), said

    def sandbox(self, name):
        return self.ask("GET", f"/v1/sandboxes/{name}")[1]

    def wait(self, name, what, condition):
        """Until what is seen of a sandbox is so."""
        seen = {}

        def look():
            seen.update(self.sandbox(name))
            return condition(seen["status"]) and seen["status"]

        try:
            return eventually(f"{name} is {what}", look)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(seen, indent=1)}") from None

    def wait_phase(self, name, phase):
        return self.wait(name, phase, lambda status: status["phase"] == phase)

    def wait_logs(self, name, text):
        return eventually(f"{text} in the logs of {name}", lambda: text in (said := self.logs(name)) and said)

    def logs(self, name):
        return self.ask("GET", f"/v1/sandboxes/{name}/logs")[1]

    def pid(self, name):
        return self.wait_phase(name, "Running")["instance"]["pid"]

    def ledger(self, name):
        """Each limit of a sandbox that runs, by its name: what it prints may be there before it is noted that it runs."""
        self.wait(name, "noted to run", lambda status: status["phase"] not in ("Pending", "Starting"))
        return {one["limit"]: one for one in self.ask("GET", f"/v1/sandboxes/{name}/limits")[1]["items"]}

    def walls(self, name):
        """Each wall of a sandbox, by its name."""
        return {one["wall"]: one for one in self.ask("GET", f"/v1/sandboxes/{name}/limits")[1]["walls"]}

    def health(self):
        return self.ask("GET", "/health")[1]

    def delete(self, name):
        status, said = self.ask("DELETE", f"/v1/sandboxes/{name}")
        assert status in (200, 202, 204), said
        eventually(f"{name} is gone", lambda: self.ask("GET", f"/v1/sandboxes/{name}")[0] == 404)

    def groups(self):
        """The cgroups of its instances, wherever it has made any."""
        tops = [root["unified"] for root in json.loads(read(self.path / "run/cgroups.json") or "[]")]
        return [path for top in tops if top and os.path.isdir(top) for path in Path(top).iterdir() if path.is_dir()]

    def end(self):
        """Deletes every sandbox, ends the daemon, and looks whether anything is left of them."""
        for one in self.ask("GET", "/v1/sandboxes")[1]["items"]:
            self.delete(one["metadata"]["name"])
        eventually("shims are gone", lambda: not any("/bin/sodium-shim" in line for line in self.around().values()))
        self.terminate()
        assert not self.around(), self.around()
        unexpected = [line for line in complaints(self.log()) if not any(text in line for text in self.expected)]
        assert not unexpected, unexpected
        mounts = [line for line in read("/proc/self/mountinfo").splitlines() if str(self.path) in line]
        assert not mounts, mounts
        assert not self.groups(), self.groups()

    def abandon(self):
        """Ends what it can after an error, so that the next rule fails only by its own fault."""
        try:
            self.terminate()
        except (AssertionError, AttributeError, subprocess.TimeoutExpired) as error:
            print(f"not ended: {error!r}")
        for group in self.groups():
            (group / "cgroup.kill").write_text("1")

    def around(self):
        """Processes that have to do with it: by what they were started with, or where they are."""
        found, own = {}, self.main_pid()
        for pid, line in processes().items():
            where = {line}
            try:
                where.add(os.readlink(f"/proc/{pid}/cwd"))
            except OSError:
                pass
            if any(str(self.path) in one for one in where) and pid not in (own, os.getpid()):
                found[pid] = line
        return found
