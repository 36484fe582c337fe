"""Judges what the daemon does by what the kernel, the workspaces and the consoles show."""

import collections
import subprocess
import threading
import time

from machine import cgroup_leaves, digits, holders_of, is_populated, processes_of, read, workspace

Tick = collections.namedtuple("Tick", "run number revision")
# A busy machine may keep a sandbox from printing for so long.
TICK_SECONDS = 15
# A stop that was asked for, or a fault, may come to its end without the daemon for so long.
TOUCHED_SECONDS = 15


class Violation(Exception):
    pass


class Judge:
    def __init__(self, daemon):
        self.daemon = daemon
        self.notes = []
        self.found = None
        self.looks = 0
        self.lines = 0
        self.watched = 0
        self.readers = []
        self.known_uids = {}
        self.touched = {}
        # The revisions that an API sandbox may have: the last acknowledged, and those asked for since.
        self.revisions = collections.defaultdict(set)
        # Nobody's concern: they must outlive everything.
        self.strangers = [subprocess.Popen(["sleep", "100000"]) for _ in range(20)]
        self.stop = threading.Event()
        self.watch = threading.Thread(target=self.watch_cgroups)
        self.watch.start()

    def close(self):
        for reader in self.readers:
            reader.close()
        self.stop.set()
        self.watch.join()
        for stranger in self.strangers:
            stranger.kill()
            stranger.wait()

    def touch(self, name_or_instance):
        """Something was done to it, so that what it does next is no sign."""
        key = name_or_instance if name_or_instance in self.known_uids else name_or_instance.split("-")[0]
        self.touched[key] = time.monotonic()

    def is_touched(self, name):
        marks = [self.touched.get(key, 0) for key in (name, digits(self.known_uids[name]))]
        return max(marks) + TOUCHED_SECONDS > time.monotonic()

    def note(self, text):
        self.notes.append(text)

    # One sandbox, one instance.

    def watch_cgroups(self):
        while not self.stop.wait(0.01):
            by_sandbox = collections.defaultdict(list)
            for leaf in cgroup_leaves(self.daemon.group):
                by_sandbox[leaf.name.rsplit("-", 1)[0]].append(leaf)
            for leaves in by_sandbox.values():
                populated = [leaf for leaf in leaves if is_populated(leaf)]
                # Only if the first still has something in it after the second was seen to have.
                if len(populated) > 1 and is_populated(populated[0]):
                    who = {leaf.name: [read(f"/proc/{pid}/cmdline") for pid in processes_of(leaf)] for leaf in populated}
                    self.found = self.found or f"it runs twice: {who}"
            self.looks += 1

    def look(self):
        """Everything that must hold at any time."""
        if self.found:
            raise Violation(self.found)
        if wrong := [reader.found for reader in self.readers if reader.found]:
            raise Violation(wrong[0])
        if any(stranger.poll() is not None for stranger in self.strangers):
            raise Violation("a process was killed that has nothing to do with the daemon")
        for name in self.known():
            runs = [tick.run for tick in self.ticks(name)]
            blocks = [run for run, before in zip(runs, [None, *runs]) if run != before]
            if len(blocks) != len(set(blocks)):
                raise Violation(f"two starts of {name} ran at once")
        if self.daemon.child.poll() is None:
            for name in list(self.revisions):
                self.shown(name, self.daemon.ask("GET", f"/v1/sandboxes/{name}"))

    # What was acknowledged.

    def asked(self, name, revision):
        self.revisions[name].add(revision)

    def acknowledged(self, name, revision):
        self.revisions[name] = {revision}

    def allowed(self, name):
        return self.revisions[name]

    def shown(self, name, answer):
        """The revision the API shows, which may not be one that was replaced."""
        if answer.status != 200:
            raise Violation(f"{name} is lost: {answer.status} {answer.body}")
        self.known_uids[name] = answer.body["metadata"]["uid"]
        revision = int(answer.body["spec"]["env"]["REVISION"])
        if name in self.revisions and revision not in self.revisions[name]:
            raise Violation(f"{name} has revision {revision}, asked for: {sorted(self.revisions[name])}")
        if self.daemon.group is None and answer.body["status"]["instance"]:
            self.daemon.find_group(answer.body["status"]["instance"]["pid"])
        return revision

    # What runs, by what it writes into its workspace.

    def known(self):
        return list(self.known_uids)

    def ticks(self, name):
        text = read(workspace(self.daemon.directory, self.known_uids.get(name, "-")) / "ticks").decode()
        rows = [line.split() for line in text.splitlines()]
        return [Tick(row[0], int(row[1]), int(row[2])) for row in rows if len(row) == 3]

    def last_tick(self, name):
        ticks = self.ticks(name)
        return ticks[-1] if ticks else None

    def runs(self):
        """Which sandboxes certainly run now: their program wrote something within a moment."""
        before = {name: self.last_tick(name) for name in self.known()}
        time.sleep(0.5)
        after = {name: self.last_tick(name) for name in self.known()}
        return {name: after[name] for name in after if after[name] != before[name] and not self.is_touched(name)}

    def still_run(self, runs):
        """Without a daemon, nothing about them changes."""
        for name, old in runs.items():
            deadline = time.monotonic() + TICK_SECONDS
            while (now := self.last_tick(name)) == old:
                if time.monotonic() > deadline:
                    raise Violation(f"{name} ran and writes no more")
                time.sleep(0.05)
            if now.run != old.run:
                raise Violation(f"{name} was started again though nothing was the matter")

    # Consoles and remains.

    def watch_consoles(self, readers):
        self.readers = readers

    def close_consoles(self):
        self.look()
        for reader in self.readers:
            reader.close()
            self.watched += reader.lines
        self.readers = []

    def console(self, name):
        """Each start's lines are all there, in order, from its first on."""
        answer = self.daemon.ask("GET", f"/v1/sandboxes/{name}/logs")
        last = {}
        for line in answer.body.decode(errors="replace").splitlines()[:-1]:
            run, _, number = line.partition(" ")
            if not (run.isdigit() and number.isdigit()):
                continue
            if int(number) != last.get(run, 0) + 1:
                raise Violation(f"the console of {name} goes from {last.get(run, 0)} to {number} in {run}")
            last[run] = int(number)
            self.lines += 1
        tick = self.last_tick(name)
        if last.get(tick.run, 0) < tick.number - 20:
            raise Violation(f"the console of {name} is at {last.get(tick.run)}, its workspace at {tick}")

    def nothing_left(self, deadline):
        remains = self.remains()
        while remains and time.monotonic() < deadline:
            time.sleep(0.1)
            remains = self.remains()
        if remains:
            raise Violation(f"left behind: {remains}")
        self.revisions.clear()
        self.known_uids.clear()
        self.look()

    def remains(self):
        leaves = [str(leaf) for leaf in cgroup_leaves(self.daemon.group)]
        directories = [str(path) for path in (self.daemon.directory / "run" / "i").iterdir()]
        mounts = [line for line in read("/proc/self/mountinfo").decode().splitlines() if str(self.daemon.directory) in line]
        return leaves + directories + [line for line in mounts if "/run/shown" not in line]

    def nobody_left(self, deadline):
        """The daemon is gone, and no process has anything of its directory open."""
        while holders := holders_of(str(self.daemon.directory)):
            if time.monotonic() > deadline:
                raise Violation(f"still running: {holders}")
            time.sleep(0.1)

    def summary(self):
        return f"{self.looks} looks at the cgroups, {self.lines} lines of consoles, {self.watched} as they came"
