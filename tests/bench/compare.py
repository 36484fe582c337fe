#!/usr/bin/env python3
"""README's table: a container engine, runsc, bwrap and sodiumd on this machine, in one run, each as its users start it.

    compare.py PROGRAM RUNSC        PROGRAM is a sodiumd with its shim beside it

Where no Docker engine runs, podman stands in for one, and the table says so. Start-up is from the command (of sodiumd: from the
request over TCP) to the first byte of output, the median of ROUNDS, taken in turns. Memory is what each adds to a program that
sleeps: the proportional share (PSS) of every process that is there because of it, without a daemon that is there once. What a
system call costs is a loop of stat(2), beside the same loop on the host.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROUNDS = 15
PATIENCE = 60
TOKEN = "a-token-for-comparisons"
LOOP = "import os,time; n=20000; t=time.perf_counter(); [os.stat('/usr') for _ in range(n)]; print((time.perf_counter()-t)/n*1e6)"
QUIET = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
USR = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]


def first_byte(command):
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, **QUIET)
    assert child.stdout.read(1), f"{command} printed nothing"
    took = time.perf_counter() - began
    child.stdout.read()
    child.wait()
    return took * 1000


def output(command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, **QUIET).stdout


def processes():
    return {int(path.name) for path in Path("/proc").glob("[0-9]*")}


def pss_kib(pids):
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total


class Command:
    """What is a command line before the program's own."""

    def __init__(self, prefix, end=None):
        self.prefix, self.clean = prefix, end

    def start(self):
        return first_byte([*self.prefix(), "echo", "hi"])

    def loop(self):
        return float(output([*self.prefix(), "/usr/bin/python3", "-c", LOOP]))

    def memory(self):
        before = processes()
        child = subprocess.Popen([*self.prefix(), "sleep", "1000"], stdout=subprocess.DEVNULL, start_new_session=True, **QUIET)
        time.sleep(4)
        mine = processes() - before - {os.getpid()}
        mib = pss_kib(mine) / 1024
        child.kill()
        for pid in mine:
            try:
                os.kill(pid, 9)
            except OSError:
                pass
        child.wait()
        return mib

    def end(self):
        if self.clean:
            self.clean()


def bwrap():
    args = ["--unshare-all", "--die-with-parent", *USR, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"]
    return Command(lambda: ["bwrap", *args])


def runsc(program, place):
    return Command(lambda: [program, f"--root={place}/runsc", "--network=none", "--ignore-cgroups", "do", "-force-overlay=false"])


def engine(place):
    """The engine that there is, on the host's own /usr. None: there is none."""
    root = Path(place, "rootfs")
    for name in ["usr", "proc", "sys", "dev", "tmp", "etc", "run"]:
        (root / name).mkdir(parents=True)
    for name in ["bin", "lib", "lib64", "sbin"]:
        (root / name).symlink_to(f"usr/{name}")
    if not shutil.which("podman"):
        return None, None
    # Without limits that need more than root here may have.
    flags = ["--root", f"{place}/podman", "--runroot", f"{place}/podman-run", "--cgroup-manager=cgroupfs", "--events-backend=none",
             "--runtime", shutil.which("runc") or "crun"]
    run = ["run", "--rm", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--volume", "/usr:/usr:ro",
           "--rootfs", str(root)]

    def end():
        subprocess.run(["podman", *flags, "rm", "--force", "--all"], stdout=subprocess.DEVNULL, **QUIET)

    return "podman, for Docker", Command(lambda: ["podman", *flags, *run], end)


class Sodiumd:
    def __init__(self, program, runsc_program, place, isolation, number):
        self.isolation, self.dir = isolation, Path(place, isolation)
        (self.dir / "desired").mkdir(parents=True)
        images = Path(__file__).resolve().parents[2] / "images"
        config = {"port": 0, "token": TOKEN, "images_path": str(images), "gvisor": {"program": runsc_program},
                  "uids": {"first": 2_060_000_000 + number * 40_000, "count": 40_000}}
        (self.dir / "config.json").write_text(json.dumps(config))
        (self.dir / "config.json").chmod(0o600)
        self.log = self.dir / "log"
        with self.log.open("wb") as log:
            command = [program, "run", "--config", str(self.dir / "config.json")]
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.program = program
        deadline = time.monotonic() + PATIENCE
        while "http://127.0.0.1:" not in (said := self.log.read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        self.port = int(said.split("http://127.0.0.1:")[1].split()[0])
        if isolation == "gvisor":
            time.sleep(3)

    def ask(self, method, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body and json.dumps(body).encode(), method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            text = response.read().decode()
        return json.loads(text) if text[:1] in "{[" else text

    def declare(self, command):
        self.ask("PUT", "/v1/sandboxes/one", {
            "apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "one"},
            "spec": {"command": command, "isolation": self.isolation, "state": "stopped", "restart": {"policy": "never"}}})

    def stopped(self):
        deadline = time.monotonic() + PATIENCE
        while (status := self.ask("GET", "/v1/sandboxes/one")["status"])["instance"] or status["phase"] == "Pending":
            assert time.monotonic() < deadline, status
            time.sleep(0.01)

    def start(self):
        self.declare(["echo", "hi"])
        self.stopped()
        follow = socket.create_connection(("127.0.0.1", self.port))
        follow.sendall(f"GET /v1/sandboxes/one/logs?follow=1&tail=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        follow.recv(4096)
        began = time.perf_counter()
        order = socket.create_connection(("127.0.0.1", self.port))
        order.sendall(f"POST /v1/sandboxes/one/start HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode())
        while b"hi" not in follow.recv(4096):
            pass
        took = time.perf_counter() - began
        follow.close()
        order.close()
        self.stopped()
        return took * 1000

    def running(self, command):
        """In a new one: nothing of another run is in it."""
        self.ask("DELETE", "/v1/sandboxes/one?wait=60s")
        self.declare(command)
        before = processes()
        self.ask("POST", "/v1/sandboxes/one/start?wait=60s")
        return before

    def memory(self):
        before = self.running(["sleep", "1000"])
        time.sleep(4)
        mib = pss_kib(processes() - before) / 1024
        self.ask("POST", "/v1/sandboxes/one/kill?wait=60s")
        return mib

    def loop(self):
        self.running(["python3", "-c", LOOP])
        deadline = time.monotonic() + PATIENCE
        while not self.ask("GET", "/v1/sandboxes/one")["status"]["last_exit"]:
            assert time.monotonic() < deadline, "the loop does not end"
            time.sleep(0.05)
        return float(self.ask("GET", "/v1/sandboxes/one/logs").split()[-1])

    def end(self):
        self.ask("DELETE", "/v1/sandboxes/one?wait=60s")
        self.daemon.terminate()
        self.daemon.wait(PATIENCE)
        command = [self.program, "uninstall", "--purge", "--yes", "--config", str(self.dir / "config.json")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    program, runsc_program = (os.path.realpath(path) for path in sys.argv[1:3])
    place = tempfile.mkdtemp(prefix="sodium-compare-", dir="/var/tmp")
    os.chmod(place, 0o755)
    name, command = engine(place)
    rows = {name: command} if command else {}
    rows |= {"`runsc do`": runsc(runsc_program, place), "`bwrap`": bwrap(),
             "sodiumd, gVisor": Sodiumd(program, runsc_program, place, "gvisor", 0),
             "sodiumd, bubblewrap": Sodiumd(program, runsc_program, place, "bubblewrap", 1)}
    try:
        times = {name: [] for name in rows}
        for each in range(ROUNDS + 1):
            for name, row in rows.items():
                took = row.start()
                # The first warms caches.
                if each:
                    times[name].append(took)
        host = float(output(["/usr/bin/python3", "-c", LOOP]))
        print("| | start-up | memory beside the program | a stat(2), times the host's |")
        print("|---|---|---|---|")
        for name, row in rows.items():
            print(f"| {name} | {statistics.median(times[name]):.0f} ms | {row.memory():.1f} MiB | {row.loop() / host:.1f} |")
        if "podman, for Docker" not in rows:
            print("\nThere is neither Docker nor podman here: apt install podman runc", file=sys.stderr)
    finally:
        for row in rows.values():
            row.end()
        shutil.rmtree(place, ignore_errors=True)


main()
