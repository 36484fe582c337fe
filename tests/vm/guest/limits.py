"""Limits where version 2 has all controllers: read back from the kernel, and met."""

import threading
from pathlib import Path

from guest import GROUPS, Daemon, alive, eventually, family_of, group_of, read, rule

MACHINES = ["plain"]

ISOLATIONS = ["bubblewrap", "process"]
LIMITS = {"memory_mb": 48, "cpu_percent": 50, "max_processes": 12, "max_files": 100}
BOMB = "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"
FORKS = """import os, time
refused = 0
for _ in range(30):
    try:
        if os.fork() == 0: time.sleep(1000)
    except OSError: refused += 1
print('refused', refused, flush=True)
time.sleep(1000)"""


def keeps(daemon, name, own):
    """That the ledger has them all as enforced, and the kernel has them too."""
    group = group_of(daemon.pid(name))
    ledger = daemon.ledger(name)
    files = {"memory_mb": "memory.max", "cpu_percent": "cpu.max", "max_processes": "pids.max"}
    for limit, value in LIMITS.items():
        entry = ledger[limit]
        assert entry["verdict"] == "enforced", entry
        if own is not None:
            assert entry["read_back"] == value, entry
        if own is not None and limit in files:
            assert entry["mechanism"] == f"cgroup v2 {files[limit]}", entry
    said = {file: read(group / file).strip() for file in files.values()}
    assert said["memory.max"] == str(48 << 20) and said["cpu.max"] == "50000 100000", said
    assert own is None or said["pids.max"] == str(12 + own), said
    assert read(group / "memory.swap.max").strip() in ("0", ""), "it may swap"
    return group


@rule
def limits_are_enforced_and_read_back_under_each_isolation():
    with Daemon(isolation_floor="process").start() as daemon:
        for isolation, own in [("bubblewrap", 2), ("process", 1)]:
            daemon.declare(isolation, ["sleep", "1000"], isolation, LIMITS, strict=True)
            group = keeps(daemon, isolation, own)
            assert family_of(daemon.pid(isolation)).parent.parent == GROUPS, group
        status = daemon.sandbox("bubblewrap")["status"]
        assert any(one["type"] == "LimitsEnforced" and one["status"] == "True" for one in status["conditions"]), status


@rule
def a_memory_bomb_ends_as_one_and_a_fork_bomb_is_refused():
    with Daemon(isolation_floor="process").start() as daemon:
        for isolation in ISOLATIONS:
            daemon.declare(f"bomb-{isolation}", ["python3", "-c", BOMB], isolation, LIMITS)
            daemon.declare(f"forks-{isolation}", ["python3", "-c", FORKS], isolation, LIMITS)
        for isolation in ISOLATIONS:
            ended = daemon.wait(f"bomb-{isolation}", "over", lambda status: status["last_exit"])["last_exit"]
            assert ended["kind"] == "oom", ended
            breaches = daemon.ledger(f"bomb-{isolation}")["memory_mb"]["breaches"]
            assert breaches["count"] >= 1, breaches
            daemon.wait_logs(f"forks-{isolation}", "refused 19")
            breaches = daemon.ledger(f"forks-{isolation}")["max_processes"]["breaches"]
            assert breaches["count"] >= 19, breaches


@rule
def a_limit_that_is_edited_takes_hold_of_what_runs():
    with Daemon().start() as daemon:
        daemon.declare("web", ["sleep", "1000"], limits=LIMITS)
        pid = daemon.pid("web")
        daemon.declare("web", ["sleep", "1000"], limits=LIMITS | {"memory_mb": 96, "cpu_percent": 0})
        group = group_of(pid)
        eventually("the new limit", lambda: read(group / "memory.max").strip() == str(96 << 20))
        eventually("no quota", lambda: read(group / "cpu.max").split()[:1] == ["max"])
        assert daemon.pid("web") == pid


@rule
def a_daemon_that_is_killed_leaves_its_sandboxes_to_the_next():
    with Daemon().start() as daemon:
        daemon.declare("web", ["sh", "-c", "echo up; sleep 1000"], limits=LIMITS)
        daemon.wait_logs("web", "up")
        pid = daemon.pid("web")
        daemon.kill()
        assert alive(pid)
        daemon.start()
        assert daemon.pid("web") == pid
        keeps(daemon, "web", 2)
        status, said = daemon.ask("POST", "/v1/sandboxes/web/exec", {"command": ["sh", "-c", "cat /proc/self/cgroup"]})
        # In the sandbox's own cgroup, which is the root of what it sees.
        assert status == 200 and said["stdout"] == "0::/\n", said


@rule
def what_helps_a_sandbox_is_charged_to_it():
    with Daemon(isolation_floor="process").start() as daemon:
        for isolation in ISOLATIONS:
            daemon.declare(isolation, ["sleep", "1000"], isolation, LIMITS)
            family = family_of(daemon.pid(isolation))
            helpers = family / "helpers"
            assert read(family / "cpu.max").strip() == "60000 100000"
            assert read(helpers / "memory.max").strip() == str(256 << 20) and read(helpers / "pids.max").strip() == "1024"
            shim, = read(helpers / "cgroup.procs").split()
            assert b"sodium-shim" in Path(f"/proc/{shim}/cmdline").read_bytes()
            ask = ("POST", f"/v1/sandboxes/{isolation}/exec", {"command": ["sleep", "3"]})
            running = threading.Thread(target=daemon.ask, args=ask)
            running.start()
            eventually("the exec's helper is there", lambda: len(read(helpers / "cgroup.procs").split()) == 2)
            running.join()
            eventually("and goes", lambda: read(helpers / "cgroup.procs").split() == [shim])


@rule
def a_sandbox_can_stand_still():
    with Daemon().start() as daemon:
        daemon.declare("web", ["sleep", "1000"])
        group = group_of(daemon.pid("web"))
        assert daemon.ask("POST", "/v1/sandboxes/web/pause?wait=20s")[0] == 200
        assert "frozen 1" in read(group / "cgroup.events")
        assert daemon.ask("POST", "/v1/sandboxes/web/resume?wait=20s")[0] == 200
        assert "frozen 0" in read(group / "cgroup.events")


@rule
def gvisor_is_kept_within_the_same_limits():
    with Daemon(gvisor={"platform": "systrap"}).start() as daemon:
        daemon.declare("web", ["sh", "-c", "echo up; sleep 1000"], "gvisor", LIMITS | {"memory_mb": 96}, strict=True)
        daemon.wait_logs("web", "up")
        ledger = daemon.ledger("web")
        assert all(one["verdict"] == "enforced" for one in ledger.values()), ledger
        assert ledger["memory_mb"]["mechanism"] == "cgroup v2 memory.max", ledger
        group = group_of(daemon.pid("web"))
        assert read(group / "memory.max").strip() == str(96 << 20)
        assert read(group / "cpu.max").strip() == "50000 100000"
        pid = daemon.pid("web")
        daemon.kill()
        daemon.start()
        assert daemon.pid("web") == pid
