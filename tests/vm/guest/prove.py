"""`sodiumd prove` where version 2 has all controllers: each limit is really tried, and the kernel's answer is no."""

import json

from guest import MACHINE, PAYLOAD, USER, Daemon, rule, run

MACHINES = ["plain", "systemd"]
LIMITS = {"memory_mb": 96, "cpu_percent": 50, "max_processes": 24, "max_files": 128, "disk_mb": 24, "io": 8 << 20}

# What the daemon says when it is led to a link, as it is by the last try.
FOLLOWED = "Too many levels of symbolic links"


def prove(daemon, name):
    """Each row by what was tried, after it has held or not."""
    config = daemon.path / "config.json"
    # Root does not believe a configuration of somebody else's.
    user = daemon.user
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    said = run(*who, PAYLOAD / "bin/sodiumd", "--config", config, "prove", name, "-o", "json", check=False)
    assert said.startswith("{"), said
    return {row["limit"]: row for row in json.loads(said)["items"]}


@rule
def everything_holds_in_each_isolation():
    with Daemon(isolation_floor="process").start() as daemon:
        daemon.expects(FOLLOWED)
        # gVisor's part takes minutes in an emulated machine, and has its own rules in limits.py.
        for isolation in ["bubblewrap", "process"] if MACHINE == "plain" else ["bubblewrap"]:
            daemon.declare(isolation, ["sleep", "1000"], isolation, LIMITS, strict=True)
            daemon.wait_phase(isolation, "Running")
            rows = prove(daemon, isolation)
            passed = {name: row for name, row in rows.items() if row["verdict"] == "passed"}
            assert not passed, passed
            for limit in ["memory_mb", "disk_mb", "inodes", "max_processes", "max_files", "timeout_seconds"]:
                assert rows[limit]["verdict"] == "held", rows[limit]
            assert rows["memory_mb"]["mechanism"] == "cgroup v2 memory.max", rows["memory_mb"]
            assert rows["io"]["mechanism"] == "cgroup v2 io.max", rows["io"]
            assert rows["cpu_percent"]["verdict"] == "held", rows["cpu_percent"]


@rule
def what_an_ordinary_user_cannot_limit_is_found():
    if MACHINE != "plain":
        return
    with Daemon(user=USER).start() as daemon:
        daemon.expects(FOLLOWED)
        # Within no group, a memory bomb would be the machine's end.
        daemon.declare("web", ["sleep", "1000"], limits={"memory_mb": 0, "cpu_percent": 50, "max_processes": 0, "max_files": 128})
        daemon.wait_phase("web", "Running")
        rows = prove(daemon, "web")
        assert rows["cpu_percent"]["verdict"] == "passed", rows["cpu_percent"]
        assert rows["memory_mb"]["verdict"] == "not applicable", rows["memory_mb"]
        for wall in ["max_files", "timeout_seconds", "host", "network", "privileges", "workspace"]:
            assert rows[wall]["verdict"] == "held", rows[wall]
