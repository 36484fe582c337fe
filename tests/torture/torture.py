#!/usr/bin/env python3
"""The real daemon, with sandboxes of every isolation, while everything about it is killed, stopped and changed.

A seed decides what happens; a judge that shares no code with the daemon looks at /proc, cgroups, workspaces and
consoles. Usage: torture.py --program PATH --runsc PATH [--minutes N] [--seed N]
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time

import mistakes
from judge import Judge, Violation
from machine import Daemon, Gone, Target, cgroup_leaves, is_populated, processes_of, unmount_below
from reader import Reader

NAMES = [
    "process-file", "bubblewrap-file", "gvisor-file",
    "process-api", "bubblewrap-api", "gvisor-api",
]
# What it prints and what it writes into its workspace can be told from what any other start of it did.
PROGRAM = """
run=$SRANDOM$SRANDOM; n=0
while :; do
  n=$((n+1)); echo "$run $n"; echo "$run $n $REVISION" >> ticks; sleep 0.1
done
"""
# How long everything may take to be as declared once nothing disturbs it.
CONVERGE_SECONDS = 90


def spec(name, revision, state="running"):
    return {
        "command": ["bash", "-c", PROGRAM],
        "isolation": name.split("-")[0],
        "env": {"REVISION": str(revision)},
        "restart": {"policy": "always", "backoff": {"initial": "100ms", "max": "1s"}},
        "limits": {"timeout_seconds": 0},
        "state": state,
    }


class Torture:
    def __init__(self, daemon, judge, seed):
        self.daemon, self.judge = daemon, judge
        self.dice = random.Random(seed)
        self.revision = 0
        self.stopped = []
        self.counts = {}
        # What each file was last written to say; what the API was asked for, the judge keeps.
        self.wanted = {}

    # What people do.

    def next_revision(self):
        self.revision += 1
        return self.revision

    def write(self, name):
        revision = self.next_revision()
        self.daemon.write_file(name, spec(name, revision))
        self.wanted[name] = revision
        self.judge.touch(name)

    def put(self, name):
        revision = self.next_revision()
        self.judge.asked(name, revision)
        self.judge.touch(name)
        answer = self.daemon.ask("PUT", f"/v1/sandboxes/{name}", self.daemon.document(name, spec(name, revision)))
        if answer.status in (200, 201):
            self.judge.acknowledged(name, revision)
        elif answer.status != 409:
            raise Violation(f"PUT {name} answers {answer.status}: {answer.body}")

    def edit(self):
        name = self.dice.choice(NAMES)
        (self.write if name.endswith("file") else self.put)(name)

    def spoil(self):
        """A file half written, and whole a moment later."""
        name = self.dice.choice([name for name in NAMES if name.endswith("file")])
        self.daemon.write_text(name, "apiVersion: sodium.dev/v1\nkind: Sandbox\nmetadata: {na")
        time.sleep(self.dice.choice([0, 0.3, 3]))
        self.write(name)

    def power(self):
        name, verb = self.dice.choice(NAMES), self.dice.choice(["stop", "start", "kill", "restart"])
        self.judge.touch(name)
        self.expect(self.daemon.ask("POST", f"/v1/sandboxes/{name}/{verb}"), f"{verb} {name}")

    def churn(self):
        """One that is made, deleted, and made again under its name."""
        isolation = self.dice.choice(["process", "bubblewrap"])
        name = f"{isolation}-churn"
        document = self.daemon.document(name, spec(name, 0))
        self.expect(self.daemon.ask("PUT", f"/v1/sandboxes/{name}", document), f"put {name}")
        time.sleep(self.dice.random() / 2)
        self.expect(self.daemon.ask("DELETE", f"/v1/sandboxes/{name}"), f"delete {name}")

    def pause(self):
        """One stands still for a while."""
        name = self.dice.choice(NAMES)
        self.judge.touch(name)
        self.expect(self.daemon.ask("POST", f"/v1/sandboxes/{name}/pause"), f"pause {name}")
        time.sleep(self.dice.choice([0.1, 1]))
        self.judge.touch(name)
        self.expect(self.daemon.ask("POST", f"/v1/sandboxes/{name}/resume"), f"resume {name}")

    def exec(self):
        """Something is run inside what runs, if it runs."""
        name = self.dice.choice(NAMES)
        answer = self.daemon.ask("POST", f"/v1/sandboxes/{name}/exec", {"command": ["cat", "/proc/self/status"]})
        if answer.status == 200 and answer.body["code"] == 0 and "Name:" not in answer.body["stdout"]:
            raise Violation(f"exec in {name} says it is well and has no output: {answer.body}")

    def hang_up(self):
        """The configuration is read again."""
        Target(self.daemon.pid).send(signal.SIGHUP)

    def drain(self):
        """The host is emptied: nothing runs, whatever is declared, until it may again."""
        for name in NAMES:
            self.judge.touch(name)
        answer = self.daemon.ask("POST", "/v1/drain?wait=20s")
        # A shim that stands still keeps its sandbox for longer.
        if answer.status == 200 and (left := [leaf.name for leaf in cgroup_leaves(self.daemon.group) if is_populated(leaf)]):
            raise Violation(f"the host is drained, and {left} run")
        if self.dice.random() < 0.5:
            self.kill_daemon()
            if answer.status == 200 and any(is_populated(leaf) for leaf in cgroup_leaves(self.daemon.group)):
                raise Violation("the host is drained, and after a restart of the daemon something runs")
        for name in NAMES:
            self.judge.touch(name)
        self.expect(self.daemon.ask("DELETE", "/v1/drain"), "undrain")

    def expect(self, answer, what):
        # Not found, in the way of a deletion, or a start that the last one has not ended.
        if answer.status >= 500 or answer.status in (400, 401, 422):
            raise Violation(f"{what} answers {answer.status}: {answer.body}")

    # What goes wrong.

    def kill_daemon(self):
        self.daemon.kill()
        for _ in range(self.dice.choice([0, 0, 1, 3])):
            self.daemon.start(wait=False)
            time.sleep(self.dice.random() / 5)
            self.daemon.kill()
        self.start_after(self.dice.choice([0, 0.5]))

    def end_daemon(self):
        self.daemon.terminate()
        self.start_after(0.3)

    def start_after(self, seconds):
        """Without a daemon, what runs runs on."""
        before = self.judge.runs()
        time.sleep(seconds)
        self.judge.still_run(before)
        self.daemon.start()

    def stop_daemon(self):
        target = Target(self.daemon.pid)
        target.send(signal.SIGSTOP)
        time.sleep(self.dice.choice([0.2, 2]))
        target.send(signal.SIGCONT)

    def kill_shim(self):
        self.on_one(self.daemon.shims(), signal.SIGKILL)

    def stop_shim(self):
        target = self.on_one(self.daemon.shims(), signal.SIGSTOP)
        if target:
            self.stopped.append((time.monotonic() + self.dice.choice([0.2, 3, 20]), target))

    def kill_inside(self):
        self.on_one(self.inside(), signal.SIGKILL)

    def stop_inside(self):
        target = self.on_one(self.inside(), signal.SIGSTOP)
        if target:
            self.stopped.append((time.monotonic() + self.dice.choice([0.1, 2]), target))

    def inside(self):
        """The programs and what runs them, each with its instance."""
        return [(pid, leaf.name) for leaf in cgroup_leaves(self.daemon.group) for pid in processes_of(leaf)]

    def on_one(self, processes, number):
        if not processes:
            return None
        pid, instance = self.dice.choice(processes)
        target = Target(pid)
        # A pid may be another's by now; what is meant belongs to this daemon, or nothing is done.
        if not self.daemon.owns(target.pid):
            return None
        self.judge.touch(instance)
        target.send(number)
        return target

    def go_on(self, all_of_them=False):
        late = [one for one in self.stopped if all_of_them or one[0] <= time.monotonic()]
        self.stopped = [one for one in self.stopped if one not in late]
        for _, target in late:
            target.send(signal.SIGCONT)

    # The whole.

    def begin(self):
        self.daemon.start()
        for name in NAMES:
            (self.write if name.endswith("file") else self.put)(name)
        self.converge()
        self.judge.watch_consoles([Reader(self.daemon, name) for name in NAMES])

    def disturb(self, seconds):
        acts = [
            (self.edit, 5), (self.spoil, 1), (self.power, 4), (self.churn, 3),
            (self.kill_daemon, 4), (self.end_daemon, 2), (self.stop_daemon, 1),
            (self.pause, 2), (self.exec, 3), (self.hang_up, 1), (self.drain, 1),
            (self.kill_shim, 3), (self.stop_shim, 2), (self.kill_inside, 5), (self.stop_inside, 2),
        ]
        doings, weights = zip(*acts)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            act = self.dice.choices(doings, weights)[0]
            self.judge.note(act.__name__)
            self.counts[act.__name__] = self.counts.get(act.__name__, 0) + 1
            try:
                act()
            except Gone as gone:
                # Nothing but a fault of ours may leave a question without an answer.
                self.daemon.must_live(gone)
            self.go_on()
            self.judge.look()
            time.sleep(self.dice.random())

    def converge(self):
        """Nothing disturbs it any more: everything becomes as declared, and stays so."""
        self.judge.note("converge")
        self.go_on(all_of_them=True)
        deadline = time.monotonic() + CONVERGE_SECONDS
        self.expect(self.daemon.ask("DELETE", "/v1/drain"), "undrain")
        self.settle(lambda name: self.daemon.ask("POST", f"/v1/sandboxes/{name}/start").status < 300, deadline)
        self.settle(self.as_declared, deadline)
        runs = self.judge.runs()
        time.sleep(2)
        self.judge.still_run(runs)
        self.judge.look()
        for name in NAMES:
            self.judge.console(name)

    def settle(self, done, deadline):
        left = NAMES
        while left := [name for name in left if not done(name)]:
            if time.monotonic() > deadline:
                states = [self.daemon.ask("GET", f"/v1/sandboxes/{name}").body for name in left]
                raise Violation(f"not as declared after {CONVERGE_SECONDS} s: {json.dumps(states, indent=1)}")
            time.sleep(0.1)

    def as_declared(self, name):
        answer = self.daemon.ask("GET", f"/v1/sandboxes/{name}")
        if answer.status != 200 or answer.body["status"]["phase"] != "Running":
            return False
        allowed = {self.wanted[name]} if name in self.wanted else self.judge.allowed(name)
        shown = self.judge.shown(name, answer)
        last = self.judge.last_tick(name)
        return last is not None and last.revision == shown and shown in allowed

    def end(self):
        self.judge.close_consoles()
        for name in [*NAMES, "process-churn", "bubblewrap-churn"]:
            if name.endswith("file"):
                self.daemon.remove_file(name)
            else:
                self.expect(self.daemon.ask("DELETE", f"/v1/sandboxes/{name}"), f"delete {name}")
        deadline = time.monotonic() + CONVERGE_SECONDS
        while self.daemon.ask("GET", "/v1/sandboxes").body["items"]:
            if time.monotonic() > deadline:
                raise Violation(f"not all are gone: {self.daemon.ask('GET', '/v1/sandboxes').body}")
            time.sleep(0.1)
        self.judge.nothing_left(deadline)
        self.daemon.terminate()
        self.judge.nobody_left(deadline)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--runsc", required=True)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--mistakes", action="store_true", help="show that the judge finds what is wrong")
    given = parser.parse_args()
    if not given.mistakes:
        print(f"torture: {given.minutes:g} min, again with --seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sodium-torture-") as directory:
        daemon = Daemon(given.program, given.runsc, directory)
        judge = Judge(daemon)
        torture = Torture(daemon, judge, given.seed)
        try:
            torture.begin()
            if given.mistakes:
                mistakes.each_is_found(daemon, judge)
                return 0
            until = time.monotonic() + given.minutes * 60
            while (left := until - time.monotonic()) > 0:
                torture.disturb(min(45, left))
                torture.converge()
            torture.end()
        except (Violation, Gone) as violation:
            print(f"torture: {violation}\n  last: {', '.join(judge.notes[-20:])}\n{daemon.log_end()}", file=sys.stderr)
            return 1
        finally:
            judge.close()
            daemon.clean_up()
            unmount_below(directory)
    done = ", ".join(f"{count} {name}" for name, count in sorted(torture.counts.items()))
    print(f"torture: held. {done}; {judge.summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
