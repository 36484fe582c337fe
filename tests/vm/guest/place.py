"""Where the cgroups are made, and that they are found again by a daemon that was started elsewhere."""

import os
import subprocess

from guest import GROUPS, Daemon, alive, eventually, family_of, group_of, read, rule

MACHINES = ["plain"]


def make(path):
    group = GROUPS / path
    group.mkdir(parents=True)
    for parent in [group.parent, *group.parent.parents]:
        (parent / "cgroup.subtree_control").write_text("+cpuset +cpu +io +memory +pids")
        if parent == GROUPS:
            return group


def remove(group):
    """With what is below it, once that is empty."""
    def gone():
        for path, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(path)
            except OSError:
                return False
        return True

    eventually(f"{group} is empty", gone)


def enforced(daemon, name):
    ledger = daemon.ledger(name)
    return all(ledger[limit]["verdict"] == "enforced" for limit in ["memory_mb", "cpu_percent", "max_processes"])


@rule
def a_daemon_with_a_group_of_its_own_stays_in_it():
    mine = make("mine")
    with Daemon().start(group=mine) as daemon:
        assert group_of(daemon.child.pid) == mine / "daemon", group_of(daemon.child.pid)
        daemon.declare("web", ["sleep", "1000"], strict=True)
        pid = daemon.pid("web")
        assert family_of(pid).parent.parent == mine, group_of(pid)
        handed_down = read(group_of(pid) / "cgroup.controllers").split()
        assert sorted(handed_down) == ["cpu", "cpuset", "io", "memory", "pids"], handed_down
        # As systemd starts one with DelegateSubgroup=daemon.
        daemon.kill()
        daemon.start(group=mine / "daemon")
        assert daemon.pid("web") == pid and enforced(daemon, "web")
        daemon.declare("web-2", ["sleep", "1000"])
        assert family_of(daemon.pid("web-2")).parent == family_of(pid).parent
    remove(mine)


@rule
def a_group_that_is_shared_with_others_is_left_as_it_is():
    shared = make("shared")
    other = subprocess.Popen(["sleep", "1000"])
    (shared / "cgroup.procs").write_text(str(other.pid))
    with Daemon().start(group=shared) as daemon:
        daemon.declare("web", ["sleep", "1000"], strict=True)
        assert family_of(daemon.pid("web")).parent.parent == GROUPS
        assert group_of(other.pid) == shared == group_of(daemon.child.pid)
    other.kill()
    other.wait()
    remove(shared)


@rule
def what_was_started_from_elsewhere_is_found_limited_and_ended():
    mine = make("mine")
    with Daemon().start(group=mine) as daemon:
        daemon.declare("old", ["sleep", "1000"])
        old = daemon.pid("old")
        daemon.terminate()
        # As from another shell.
        daemon.start()
        assert daemon.pid("old") == old and alive(old) and enforced(daemon, "old")
        daemon.declare("new", ["sleep", "1000"])
        assert family_of(daemon.pid("new")).parent.parent == GROUPS
        daemon.declare("old", ["sleep", "1000"], limits={"memory_mb": 100})
        group = group_of(old)
        eventually("the new limit", lambda: read(group / "memory.max").strip() == str(100 << 20))
        daemon.kill()
        daemon.start()
        assert daemon.pid("old") == old
        daemon.delete("old")
        assert not group.exists()
    remove(mine)
