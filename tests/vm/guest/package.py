"""The package, on a machine that has never seen it: installed, upgraded, removed and purged, as its maintainer scripts do it."""

import json
import os
import pty
from pathlib import Path

from guest import GROUPS, PATIENCE, PAYLOAD, alive, complaints, eventually, journal, processes, read, rule, run

MACHINES = ["systemd"]
DATA = Path("/var/lib/sodium")
WALLED = """
apiVersion: sodium.dev/v1
kind: Sandbox
metadata: {name: walled}
spec: {isolation: gvisor, command: [sleep, "1000"], limits: {timeout_seconds: 0}}
"""


def install():
    (package,) = PAYLOAD.glob("*.deb")
    return run("dpkg", "--install", str(package))


def sandbox(name):
    said = run("sodiumd", "get", name, "-o", "json", check=False)
    return json.loads(said) if said.startswith("{") else {"status": {}}


def pid_of(name):
    def look():
        status = sandbox(name)["status"]
        return status.get("phase") == "Running" and status["instance"]["pid"]

    return eventually(f"{name} runs: {sandbox(name)['status']}", look, 2 * PATIENCE)


def main_pid():
    return int(run("systemctl", "show", "--value", "-p", "MainPID", "sodiumd"))


def left():
    """What there is of sandboxes on this machine, beside files."""
    mounts = [line for line in read("/proc/self/mountinfo").splitlines() if "sodium" in line]
    loops = [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if "sodium" in read(path)]
    groups = [path for path in GROUPS.glob("**/*sodiumd*") if path.is_dir()]
    run_dirs = [path for path in Path("/run").glob("sodiumd-*") if path.name != "sodiumd-uids"]
    ours = ("sodiumd", "sodium-shim", "runsc")
    running = [line for line in processes().values() if any(f"/{name}" in line.split()[0] for name in ours)]
    return mounts + loops + groups + run_dirs + running


@rule
def two_commands_bring_examples_that_run_gvisor_included():
    said = install()
    assert "sodiumd init /etc/sodium" in said, said
    assert run("systemctl", "is-active", "sodiumd").strip() == "active"
    said = run("sodiumd", "init", "/etc/sodium")
    assert "kept  /etc/sodium/config.json" in said and "sodiumd get" in said, said
    assert alive(pid_of("ticker"))
    eventually("a tick", lambda: "tick" in run("sodiumd", "logs", "ticker"))
    Path("/tmp/walled.yaml").write_text(WALLED)
    run("sodiumd", "apply", "-f", "/tmp/walled.yaml")
    assert alive(pid_of("walled"))
    assert read("/etc/subuid").count("sodiumd:") == 1, read("/etc/subuid")
    assert (DATA / "state/token").stat().st_mode & 0o777 == 0o600


@rule
def an_upgrade_keeps_what_runs():
    pids, daemon = [pid_of("ticker"), pid_of("walled")], main_pid()
    Path("/etc/sodium/images/bash.json").write_text(read("/etc/sodium/images/bash.json") + "\n")
    install()
    eventually("another daemon", lambda: main_pid() not in (0, daemon))
    assert [pid_of("ticker"), pid_of("walled")] == pids and all(alive(pid) for pid in pids)


@rule
def removal_ends_and_unmounts_everything_and_keeps_files():
    said = run("sodiumd", "uninstall", check=False)
    assert "another sodiumd" in said and "systemctl stop sodiumd" in said, said
    run("dpkg", "--remove", "sodiumd")
    assert not left(), left()
    assert (DATA / "state").is_dir() and Path("/etc/sodium/config.json").exists()
    install()
    # What was stopped for the removal is not held back by it.
    assert alive(pid_of("walled")) and alive(pid_of("ticker"))


@rule
def purging_asks_before_files_are_lost():
    run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--purge", "sodiumd")
    assert not left() and DATA.is_dir() and not Path("/etc/sodium/config.json").exists()
    # They are whose files are still there.
    assert read("/etc/subuid").count("sodiumd:") == 1
    install()
    asked = []

    def answer(terminal):
        said = os.read(terminal, 1024)
        asked.append(said)
        if b"[y/N]" in said:
            os.write(terminal, b"y\n")
        return said

    assert pty.spawn(["dpkg", "--purge", "sodiumd"], answer, lambda _: b"") == 0
    assert b"the files of every sandbox" in b"".join(asked)
    assert "sodiumd:" not in read("/etc/subuid") + read("/etc/subgid")
    assert not left() and not DATA.exists() and not Path("/etc/sodium").exists(), left()


@rule
def nothing_of_this_was_worth_a_warning():
    said = journal()
    assert "INFO" in said and not complaints(said), complaints(said)
