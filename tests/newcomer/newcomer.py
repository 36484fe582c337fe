#!/usr/bin/env python3
"""Does what README.md says, to the letter, on a Debian that has never seen this project.

    newcomer.py SUITE...        bookworm, trixie

Each suite is a root file system of few packages, made once by mmdebstrap and kept in target/newcomer; what a run writes goes into
a layer above it and is thrown away. In it, as root in /root and then as a user in a home of mode 0700: every line of README's
code blocks, each with what must be seen after it. A line that is not in SEEN fails the run: whoever adds one to README says here
what it has to show. The only Rust there is the one of this machine, mounted; once without, to see what is told then.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
KEPT = HERE / "target/newcomer"
# What README asks for before its first command, and what a user is given by.
PACKAGES = "ca-certificates,git,make,passwd,util-linux"
USER = "ada"
# Where nobody has it whose cgroups are this machine's as well.
CLONE = "sodiumd-of-a-newcomer"
PORT = 8081
PATIENCE = 60
BUILD_PATIENCE = 1200
# How long a command that follows something is looked at.
FOLLOWED = 4
SUBSTITUTES = {
    # No terminal is here to type into.
    "sodiumd exec web -- sh": "echo 'echo inside; exit' | sodiumd exec web -- sh",
}
# A line of README, and what it must print. What is followed is interrupted.
SEEN = {
    "make run": None,
    "make test": None,
    "PATH=$PWD/target/release:$PATH": None,
    "sodiumd get": r"ticker +Running[\s\S]*web +Running",
    "sodiumd logs ticker -f": r"tick \d+\n[\s\S]*tick \d+",
    "sodiumd get web": r"memory[\s\S]*256",
    "sodiumd explain crasher": r"crash",
    "sodiumd prove web": r"memory",
    "sodiumd exec web -- sh": r"inside",
    "sodiumd events -f": r"Started|Running",
    "sodiumd apply -f - <<'END'": r"walled",
    "sodiumd logs walled": r"#1 SMP .*2016",
    "TOKEN=$(cat state/token)": None,
    'curl -s -H "Authorization: Bearer $TOKEN" 127.0.0.1:8081/v1/sandboxes/ticker | head -40': r'"kind": ?"Sandbox"',
    'curl -sN -H "Authorization: Bearer $TOKEN" "127.0.0.1:8081/v1/sandboxes/ticker/logs?follow=1"': r"tick \d+",
    'curl -s -X POST -H "Authorization: Bearer $TOKEN" "127.0.0.1:8081/v1/sandboxes/web/restart?wait=30s" >/dev/null': r"",
}
# gVisor is nothing for a user's daemon.
AS_ROOT = ["sodiumd apply -f - <<'END'", "sodiumd logs walled"]
FOLLOWING = re.compile(r" -f$|follow=1|events")


def say(what):
    print(f"newcomer: {what}", flush=True)


def lines_of(text):
    """What the shell blocks of a page have typed, without comments; what goes to a command's input belongs to it."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        rest = block.splitlines()
        while rest:
            line = re.sub(r"\s+#.*", "", rest.pop(0)).strip()
            if end := re.search(r"<<'(\w+)'$", line):
                while not line.endswith("\n" + end[1]):
                    line += "\n" + rest.pop(0)
            if line:
                yield line


class Fresh:
    """A fresh root file system, entered by a first process that everything else in it ends with."""

    def __init__(self, suite):
        self.suite = suite

    def __enter__(self):
        lower = made(self.suite)
        self.work = Path(tempfile.mkdtemp(prefix="newcomer-", dir=KEPT))
        toolchain = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
        root = self.work / "root"
        for name in ["upper", "work", "root"]:
            (self.work / name).mkdir()
        script = f"""
            set -e
            mount --make-rprivate /
            mount -t overlay -o lowerdir={lower},upperdir={self.work}/upper,workdir={self.work}/work overlay {root}
            mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount --rbind /dev {root}/dev
            mount -t tmpfs tmpfs {root}/run
            mkdir -p {root}/opt/rust {root}/opt/origin
            mount --bind {toolchain} {root}/opt/rust; mount --bind {HERE} {root}/opt/origin
            mkdir -p {root}/.old
            for file in /etc/resolv.conf /etc/hosts; do cp --remove-destination $file {root}$file; done
            # Whom this machine believes, as where its mirrors answer by themselves.
            mount --bind /etc/ssl/certs/ca-certificates.crt {root}/etc/ssl/certs/ca-certificates.crt
            # Not chroot, below which nobody may make a user namespace.
            cd {root}; pivot_root . .old; umount -l .old
            # Reaps what is nobody's, as an init does.
            sleep 100000 & echo entered; wait
        """
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "bash", "-c", script]
        self.first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.first.stdout.readline() == "entered\n", "the fresh root could not be entered"
        children = f"/proc/{self.first.pid}/task/{self.first.pid}/children"
        self.pid = Path(children).read_text().split()[0]
        self.root = root
        return self

    def __exit__(self, *_):
        self.first.kill()
        self.first.wait()
        # What is mounted in its namespace is gone with its last process.
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self.work, ignore_errors=True)

    def command(self, line, user="root", rust=True):
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" + (":/opt/rust/bin" if rust else "")
        home = "/root" if user == "root" else f"/home/{user}"
        kept = [f"{name}={value}" for name, value in os.environ.items() if re.match(r"(?i)(https?|no)_proxy|.*_CERT", name)]
        env = ["env", "-i", f"PATH={path}", f"HOME={home}", f"USER={user}", "TERM=dumb", "LANG=C.UTF-8", *kept]
        who = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        inside = ["nsenter", "-t", self.pid, "--mount", "--pid", "--uts", "--ipc", "--root", f"--wd=/proc/{self.pid}/root"]
        return [*inside, *env, *who, "sh", "-c", f"cd && umask 022 && {line}"]

    def run(self, line, user="root", patience=BUILD_PATIENCE, check=True, rust=True):
        done = subprocess.run(
            self.command(line, user, rust), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=patience, errors="replace")
        assert not check or done.returncode == 0, f"{line}: ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout


def made(suite):
    """The root file system of a suite, as it is kept."""
    root = KEPT / suite
    if not root.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        half = KEPT / f"{suite}.new"
        shutil.rmtree(half, ignore_errors=True)
        mirror = subprocess.check_output(
            "apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1", shell=True, text=True).strip()
        began = time.monotonic()
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", suite, str(half),
                        f"deb {mirror} {suite} main"], check=True)
        half.rename(root)
        say(f"{suite} is made, {time.monotonic() - began:.0f} s")
    return root


class Person:
    """Somebody who has cloned the project and types what README says."""

    def __init__(self, fresh, user):
        self.fresh, self.user, self.kept, self.daemon = fresh, user, [f"cd {CLONE}"], None

    def line(self, line):
        first = line.partition("\n")[0]
        assert first in SEEN, f"README has a line that tests/newcomer does not know: {first}"
        if re.match(r"[A-Z]+=", line):
            self.kept.append(line)
            return
        wanted = SEEN[first]
        if first in AS_ROOT and self.user != "root":
            return
        if wanted is None:
            return
        began = time.monotonic()
        deadline = began + PATIENCE
        while True:
            # What is seen after a while is what a person sees, who looks again.
            said = self.typed(line)
            if re.search(wanted, said):
                break
            assert time.monotonic() < deadline, f"{line}\ndid not show {wanted}, but\n{said[-4000:]}\n{self.log()[-4000:]}"
            time.sleep(1)
        say(f"{self.user}: {first}, {time.monotonic() - began:.1f} s")

    def typed(self, line):
        command = " && ".join([*self.kept, SUBSTITUTES.get(line, line)])
        if FOLLOWING.search(line):
            command = " && ".join([*self.kept, f"timeout -s INT {FOLLOWED} {line}"])
            return self.fresh.run(command, self.user, check=False)
        return self.fresh.run(command, self.user, check=False, patience=120)

    def log(self):
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        path = Path(f"/proc/{self.fresh.pid}/root{home}/make.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def make_run(self):
        self.fresh.run("rm -f make.log", self.user)
        began = time.monotonic()
        command = self.fresh.command(f"cd {CLONE} && exec make run > ../make.log 2>&1", self.user)
        self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while "http://127.0.0.1:8081" not in self.log():
            assert self.daemon.poll() is None, f"make run ended:\n{self.log()[-6000:]}"
            assert time.monotonic() - began < BUILD_PATIENCE, self.log()[-6000:]
            time.sleep(0.2)
        return time.monotonic() - began

    def end(self):
        self.fresh.run("pkill -INT -x sodiumd", self.user, check=False)
        self.daemon.wait(PATIENCE)


def five_minutes(fresh, user, lines):
    person = Person(fresh, user)
    say(f"{user}: make run, {person.make_run():.0f} s until it serves")
    for line in lines:
        person.line(line)
    person.end()
    again = person.make_run()
    say(f"{user}: an unchanged make run, {again:.1f} s until it serves")
    person.typed("sodiumd drain")
    person.end()
    said = person.typed("sodiumd uninstall --purge --yes")
    assert "no process, cgroup or mount" in said, said
    # The next one need not compile again what is not ours.
    fresh.run(f"test -e /opt/target || cp -a {CLONE}/target /opt/target", user)
    # And nothing but what was there.
    fresh.run(f"cd {CLONE} && make clean >/dev/null 2>&1; test ! -e target && test ! -e state && test ! -e sandboxes", user)


def without_rust(fresh):
    said = fresh.run(f"cd {CLONE} && make tools 2>&1", check=False, rust=False)
    brought = fresh.run("~/.cargo/bin/cargo --version", check=False, rust=False)
    told = re.search(r"toolchain: there is no Rust 1\.95.*installing", said)
    assert told and (re.search(r"^cargo 1\.", brought, re.M) or "toolchain: Rust 1.95 or newer is needed. Mend that" in said), said
    say(f"without Rust: {'brought' if brought.startswith('cargo 1') else 'told what to do'}")


def groups():
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/*sodiumd*")}


def is_taken(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def newcomer(suite, lines):
    assert not is_taken(PORT), f"something listens on port {PORT}, which README's daemon wants: end it first"
    before = groups()
    with Fresh(suite) as fresh:
        clone = f"git clone -q file:///opt/origin {CLONE}"
        fresh.run(f"git config --global --add safe.directory '*' && {clone}")
        without_rust(fresh)
        five_minutes(fresh, "root", lines)
        fresh.run(f"useradd --create-home {USER} && chmod 700 /home/{USER}")
        fresh.run(f"git config --global --add safe.directory '*' && {clone}", USER)
        fresh.run(f"cp -a /opt/target /home/{USER}/{CLONE}/target && chown -R {USER}: /home/{USER}/{CLONE}/target")
        five_minutes(fresh, USER, lines)
    assert groups() <= before, f"cgroups are left: {groups() - before}"
    say(f"{suite}: all that README says was seen")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lines = list(lines_of((HERE / "README.md").read_text()))
    for suite in sys.argv[1:]:
        newcomer(suite, lines)


main()
