"""The unit that is shipped, under systemd."""

import errno
import os
import re
import shutil
import socket
from pathlib import Path

from guest import GROUPS, PAYLOAD, USER, Daemon, alive, eventually, family_of, group_of, journal, read, rule, run

MACHINES = ["systemd"]
LIMITS = {"memory_mb": 48, "cpu_percent": 50, "max_processes": 12}
BOMB = "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"
UNIT = Path("/etc/systemd/system/sodiumd.service")
DROP_IN = Path("/etc/systemd/system/sodiumd.service.d/guest.conf")
SLICE = GROUPS / "sodiumd.slice"
# What root keeps, by number: see capabilities(7).
CAPABILITIES = {
    "cap_chown": 0,
    "cap_dac_override": 1,
    "cap_dac_read_search": 2,
    "cap_fowner": 3,
    "cap_fsetid": 4,
    "cap_kill": 5,
    "cap_setgid": 6,
    "cap_setuid": 7,
    "cap_setpcap": 8,
    "cap_net_bind_service": 10,
    "cap_net_admin": 12,
    "cap_sys_chroot": 18,
    "cap_sys_ptrace": 19,
    "cap_sys_admin": 21,
    "cap_sys_nice": 23,
    "cap_sys_resource": 24,
}
CLOSED = {
    "NoNewPrivileges": "yes",
    "SystemCallArchitectures": "native",
    "RestrictRealtime": "yes",
    "LockPersonality": "yes",
    "KeyringMode": "private",
    "UMask": "0022",
}
# With any of these, what one daemon mounts would be gone for the next.
SHARED = ["PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectSystem", "ProtectHome", "ProtectKernelModules"]
# Of each group that is refused, and of those that are refused by name.
REFUSED = ["clock_settime", "modify_ldt", "keyctl", "init_module", "iopl", "kexec_load", "swapon", "bpf", "io_uring_setup"]
NEEDED = ["ptrace", "mount", "setns", "unshare", "seccomp"]


def show(name):
    return run("systemctl", "show", "--value", "-p", name, "sodiumd").strip()


class Service(Daemon):
    """The daemon as systemd starts it, with these lines in the unit too."""

    def __init__(self, extra="", user=None, **config):
        super().__init__(user, port=8081, **config)
        self.port = 8081
        shutil.copy(PAYLOAD / "sodiumd.service", UNIT)
        links = {Path("/usr/bin", name): PAYLOAD / "bin" / name for name in ["sodiumd", "sodium-shim"]}
        for link, target in (links | {Path("/etc/sodium"): self.path}).items():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        DROP_IN.parent.mkdir(exist_ok=True)
        DROP_IN.write_text(f"[Service]\n{extra}\n")
        run("systemctl", "daemon-reload")
        newest = run("journalctl", "--show-cursor", "-n", "1", "-o", "cat", "--no-pager")
        self.began = re.search(r"cursor: (\S+)", newest)[1]

    def start(self):
        run("systemctl", "start", "sodiumd")
        return self

    def main_pid(self):
        return int(show("MainPID"))

    def kill(self):
        """systemd starts another by itself."""
        old = self.main_pid()
        os.kill(old, 9)
        eventually("another daemon", lambda: self.main_pid() not in (0, old) and show("ActiveState") == "active")

    def terminate(self):
        run("systemctl", "stop", "sodiumd")

    def log(self):
        return journal("--after-cursor", self.began)


def survives(daemon, above):
    """What holds however systemd puts the daemon in its group. `above` is where the groups have to be."""
    daemon.declare("web", ["sleep", "1000"], limits=LIMITS, strict=True)
    pid = daemon.pid("web")
    group = group_of(pid)
    assert family_of(pid).parent.parent == above, group
    assert read(group / "memory.max").strip() == str(48 << 20)
    ledger = daemon.ledger("web")
    assert all(ledger[limit]["verdict"] == "enforced" for limit in LIMITS), ledger
    run("systemctl", "restart", "sodiumd")
    assert alive(pid) and daemon.pid("web") == pid
    daemon.kill()
    assert daemon.pid("web") == pid
    # It is no fault of the service.
    daemon.declare("bomb", ["python3", "-c", BOMB], limits=LIMITS)
    ended = daemon.wait("bomb", "over", lambda status: status["last_exit"])["last_exit"]
    assert ended["kind"] == "oom", ended
    run("systemctl", "stop", "sodiumd")
    assert alive(pid) and show("Result") == "success", show("Result")
    run("systemctl", "start", "sodiumd")
    assert daemon.pid("web") == pid and group_of(pid) == group
    daemon.declare("web-2", ["sleep", "1000"], limits=LIMITS, strict=True)
    assert family_of(daemon.pid("web-2")).parent == family_of(pid).parent


@rule
def the_unit_is_without_fault():
    Service()
    said = run("systemd-analyze", "verify", "--man=no", str(UNIT), check=False)
    assert "sodiumd" not in said, said


def status_of(pid):
    """The fields of /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":\t" in line)


@rule
def what_the_unit_closes_is_closed():
    with Service().start() as daemon:
        assert {name: show(name) for name in CLOSED} == CLOSED
        assert all(show(name) == "no" for name in SHARED), {name: show(name) for name in SHARED}
        assert set(show("CapabilityBoundingSet").split()) == set(CAPABILITIES), show("CapabilityBoundingSet")
        assert set(show("RestrictAddressFamilies").split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
        refused = show("SystemCallFilter")
        assert refused.startswith("~"), refused
        refused = set(refused[1:].split())
        assert refused >= set(REFUSED) and not refused & set(NEEDED), refused
        # So says systemd; and so does the kernel.
        status = status_of(daemon.main_pid())
        held = {bit for bit in range(64) if int(status["CapBnd"], 16) >> bit & 1}
        assert held == set(CAPABILITIES.values()), status["CapBnd"]
        assert status["CapEff"] == status["CapBnd"] and int(status["CapAmb"], 16) == 0, status
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
        mounts = os.readlink(f"/proc/{daemon.main_pid()}/ns/mnt")
        assert mounts == os.readlink("/proc/1/ns/mnt"), mounts


@rule
def every_isolation_runs_on_a_disk_of_its_own_under_it():
    script = "cat file; echo kept > file; echo up; sleep 1000"
    limits = LIMITS | {"memory_mb": 96, "disk_mb": 32}
    with Service(isolation_floor="process", gvisor={"platform": "systrap"}).start() as daemon:
        pids = {}
        for name in ["bubblewrap", "process", "gvisor"]:
            daemon.declare(name, ["sh", "-c", script], name, limits, strict=True)
            daemon.wait_logs(name, "up")
            pids[name] = daemon.pid(name)
            ledger, walls = daemon.ledger(name), daemon.walls(name)
            assert all(one["verdict"] == "enforced" for one in ledger.values()), ledger
            assert ledger["disk_mb"]["mechanism"].startswith("ext4 image on a loop device"), ledger
            assert all(one["verdict"] != "not_enforced" for one in walls.values()), walls
            # The service's own filter, which it has inherited, is not taken for one of its own.
            assert walls["filter"]["verdict"] == "enforced", walls
            assert int(status_of(pids[name])["Seccomp_filters"]) > int(status_of(daemon.main_pid())["Seccomp_filters"])
            status, said = daemon.ask("POST", f"/v1/sandboxes/{name}/exec", {"command": ["cat", "file"]})
            assert status == 200 and said["stdout"] == "kept\n", said
        run("systemctl", "restart", "sodiumd")
        for name, pid in pids.items():
            assert daemon.pid(name) == pid
            # On the disk that the daemon before has mounted.
            status, said = daemon.ask("POST", f"/v1/sandboxes/{name}/restart?wait=60s")
            assert status == 200, said
            daemon.wait_logs(name, "kept")


@rule
def below_its_delegated_group_sandboxes_are_limited_and_outlive_restarts():
    with Service().start() as daemon:
        assert show("Type") == "notify" and show("StatusText") == "serving", show("StatusText")
        assert group_of(daemon.main_pid()) == SLICE / "sodiumd.service/daemon"
        survives(daemon, SLICE / "sodiumd.service")


@rule
def where_systemd_knows_no_subgroup_they_lie_beside_the_service():
    with Service("DelegateSubgroup=").start() as daemon:
        survives(daemon, SLICE)


@rule
def who_connects_during_a_restart_waits_and_is_served():
    with Service().start() as daemon:
        assert show("NFileDescriptorStore") == "2"
        run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", "sodiumd")
        # Nor does anybody else come to be at the other address of localhost meanwhile.
        with socket.socket(socket.AF_INET6) as stranger:
            assert stranger.connect_ex(("::1", daemon.port)) == 0
        for _ in range(2):
            with socket.socket(socket.AF_INET6) as stranger:
                try:
                    stranger.bind(("::1", daemon.port))
                    raise AssertionError("taken")
                except OSError as error:
                    assert error.errno == errno.EADDRINUSE, error
            daemon.ask("GET", "/healthz")
        assert daemon.ask("GET", "/v1/sandboxes")[0] == 200


@rule
def started_by_hand_after_the_service_was_stopped_it_finds_what_runs():
    with Service().start() as service:
        service.declare("web", ["sleep", "1000"], limits=LIMITS)
        pid = service.pid("web")
        run("systemctl", "stop", "sodiumd")
        Daemon.start(service)
        assert service.pid("web") == pid
        service.declare("web", ["sleep", "1000"], limits=LIMITS | {"memory_mb": 100})
        eventually("the new limit", lambda: read(group_of(pid) / "memory.max").strip() == str(100 << 20))
        Daemon.terminate(service)
        service.start()
        assert service.pid("web") == pid


@rule
def as_the_service_of_an_ordinary_user_limits_are_kept_too():
    with Service(f"User={USER}\nSlice=tenants.slice", user=USER).start() as daemon:
        survives(daemon, GROUPS / "tenants.slice/sodiumd.service")


@rule
def in_a_scope_of_a_users_own_manager_limits_are_kept():
    run("loginctl", "enable-linger", "tenant")
    socket = f"/run/user/{USER}/systemd/private"
    eventually("the user's manager", lambda: os.path.exists(socket))
    scope = ["env", f"XDG_RUNTIME_DIR=/run/user/{USER}", "systemd-run", "--quiet", "--user", "--scope", "-p", "Delegate=yes"]
    with Daemon(user=USER).start(within=scope) as daemon:
        daemon.declare("web", ["sleep", "1000"], limits=LIMITS, strict=True)
        group = group_of(daemon.pid("web"))
        assert f"user@{USER}.service" in str(group), group
        assert read(group / "memory.max").strip() == str(48 << 20)
    run("loginctl", "disable-linger", "tenant")
