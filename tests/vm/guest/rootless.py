"""A daemon of an ordinary user: bubblewrap runs, and what nobody here can limit is not said to be limited."""

import os

from guest import USER, Daemon, alive, family_of, group_of, read, rule, run
from place import make, remove

MACHINES = ["plain"]
LIMITS = {"memory_mb": 48, "cpu_percent": 50, "max_processes": 12}
BOMB = "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"


@rule
def without_a_group_sandboxes_run_and_the_ledger_says_what_is_not_kept():
    with Daemon(user=USER).start() as daemon:
        daemon.declare("web", ["sh", "-c", "id -u; echo up; sleep 1000"], limits=LIMITS | {"max_files": 100, "disk_mb": 64})
        assert daemon.wait_logs("web", "up").split() == ["1000", "up"]
        ledger = daemon.ledger("web")
        for limit in LIMITS:
            entry = ledger[limit]
            assert entry["verdict"] == "unsupported" and entry["read_back"] is None, entry
            assert entry["reason"] == f"no cgroup controller for {limit} was given to the user that sodiumd runs as", entry
        for limit in ["max_files", "timeout_seconds"]:
            assert ledger[limit]["verdict"] == "enforced", ledger[limit]
        assert ledger["disk_mb"]["verdict"] != "enforced", ledger["disk_mb"]
        pid = daemon.pid("web")
        assert os.stat(f"/proc/{pid}").st_uid == USER
        status, said = daemon.ask("POST", "/v1/sandboxes/web/exec", {"command": ["sh", "-c", "id -u; cat /proc/1/comm"]})
        assert status == 200 and said["stdout"] == "1000\nbwrap\n", said
        daemon.kill()
        daemon.start()
        assert daemon.pid("web") == pid
        assert daemon.ask("POST", "/v1/sandboxes/web/kill?wait=20s")[0] == 200
        assert not alive(pid)


@rule
def strict_refuses_to_run_what_is_not_kept_and_says_which():
    with Daemon(user=USER).start() as daemon:
        daemon.declare("web", ["sleep", "1000"], strict=True)
        status = daemon.wait_phase("web", "Failed")
        said = [one["message"] for one in status["conditions"] if one["type"] == "Ready"]
        assert said[0].startswith("strict: memory_mb") and "not enforced" in said[0], status
        assert status["instance"] is None
        # With no such limit, nothing keeps it from running.
        daemon.declare("web", ["sleep", "1000"], limits={limit: 0 for limit in LIMITS}, strict=True)
        daemon.wait_phase("web", "Running")


@rule
def an_exec_without_a_group_ends_with_its_connection():
    with Daemon(user=USER).start() as daemon:
        daemon.declare("web", ["sleep", "1000"])
        daemon.wait_phase("web", "Running")
        body = {"command": ["sh", "-c", "sleep 4321 & wait"], "timeout_seconds": 1}
        status, said = daemon.ask("POST", "/v1/sandboxes/web/exec", body)
        assert status == 504, said
        assert "sleep 4321" not in run("ps", "ax")


@rule
def a_plain_process_runs_and_gvisor_says_that_it_cannot():
    with Daemon(user=USER, isolation_floor="process", gvisor={"platform": "systrap"}).start() as daemon:
        daemon.declare("plain", ["sh", "-c", "id -u; sleep 1000"], "process")
        assert daemon.wait_logs("plain", "\n").split() == [str(USER)]
        daemon.wait_phase("plain", "Running")
        missing = {wall for wall, one in daemon.walls("plain").items() if one["verdict"] == "not_enforced"}
        assert missing == {f"{kind}_namespace" for kind in ["mount", "pid", "ipc", "network"]} | {"user"}, missing
        daemon.declare("strict", ["sleep", "1000"], "process", {limit: 0 for limit in LIMITS}, strict=True)
        status = daemon.wait_phase("strict", "Failed")
        said = [one["message"] for one in status["conditions"] if one["type"] == "WallsEnforced"]
        assert "user is not enforced" in said[0] and status["last_exit"] is None, status
        daemon.declare("gvisor", ["sleep", "1000"], "gvisor")
        status = daemon.wait_phase("gvisor", "Failed")
        said = [one["message"] for one in status["conditions"] if one["type"] == "Ready"]
        assert said == ["gvisor needs a daemon that runs as root"], status


@rule
def in_a_group_that_was_given_to_the_user_limits_are_kept():
    given = make("given")
    for path in [given, given / "cgroup.procs", given / "cgroup.subtree_control", given / "cgroup.threads"]:
        os.chown(path, USER, USER)
    with Daemon(user=USER).start(group=given) as daemon:
        daemon.declare("web", ["sleep", "1000"], limits=LIMITS, strict=True)
        pid = daemon.pid("web")
        group = group_of(pid)
        assert family_of(pid).parent.parent == given, group
        ledger = daemon.ledger("web")
        for limit, value in LIMITS.items():
            assert (ledger[limit]["verdict"], ledger[limit]["read_back"]) == ("enforced", value), ledger[limit]
        assert read(group / "memory.max").strip() == str(48 << 20)
        daemon.declare("bomb", ["python3", "-c", BOMB], limits=LIMITS)
        ended = daemon.wait("bomb", "over", lambda status: status["last_exit"])["last_exit"]
        assert ended["kind"] == "oom", ended
        daemon.kill()
        daemon.start(group=given / "daemon")
        assert daemon.pid("web") == pid
    remove(given)
