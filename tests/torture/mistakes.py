"""Shows that the judge can find fault: each thing that must never happen is made to happen, behind the daemon's back."""

import os
import signal
import subprocess
import time

from judge import Violation
from machine import Target, digits, processes_of, workload, workspace


def second_instance(daemon, judge):
    leaf = daemon.group / (digits(judge.known_uids["process-api"]) + "-999")
    workload(leaf).mkdir(parents=True)
    try:
        with subprocess.Popen(["sleep", "100"]) as rival:
            (workload(leaf) / "cgroup.procs").write_text(str(rival.pid))
            time.sleep(0.5)
            rival.kill()
        judge.look()
    finally:
        workload(leaf).rmdir()
        leaf.rmdir()
        judge.found = None


def two_starts_at_once(daemon, judge):
    ticks = workspace(daemon.directory, judge.known_uids["process-api"]) / "ticks"
    first = judge.ticks("process-api")[0].run
    for run in ("12345", first):
        with ticks.open("a") as file:
            file.write(f"{run} 1 1\n")
        time.sleep(0.3)
    try:
        judge.look()
    finally:
        ticks.write_text("")


def stranger_killed(_daemon, judge):
    stranger = judge.strangers.pop()
    stranger.kill()
    stranger.wait()
    judge.strangers.append(stranger)
    try:
        judge.look()
    finally:
        judge.strangers.remove(stranger)


def change_lost(_daemon, judge):
    kept = judge.revisions["process-api"]
    judge.acknowledged("process-api", 1 << 40)
    try:
        judge.look()
    finally:
        judge.revisions["process-api"] = kept


def sandbox_lost(daemon, judge):
    judge.acknowledged("never-was", 1)
    try:
        judge.look()
    finally:
        del judge.revisions["never-was"]


def bytes_lost(daemon, judge):
    spool = daemon.directory / "state" / "console" / judge.known_uids["bubblewrap-api"]
    file = max((path for path in spool.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"#" * 60)
    judge.console("bubblewrap-api")


def started_again(daemon, judge):
    judge.touched.clear()
    runs = judge.runs()
    leaf = daemon.group / (digits(judge.known_uids["gvisor-api"]) + "-1")
    for pid in processes_of(leaf):
        if daemon.owns(pid):
            Target(pid).send(signal.SIGKILL)
    judge.still_run(runs)


def cgroup_left(daemon, judge):
    leaf = daemon.group / "left"
    leaf.mkdir()
    try:
        if str(leaf) in judge.remains():
            raise Violation(f"{leaf.name} is left")
    finally:
        os.rmdir(leaf)


MISTAKES = [
    second_instance, two_starts_at_once, stranger_killed, change_lost, sandbox_lost,
    bytes_lost, started_again, cgroup_left,
]


def each_is_found(daemon, judge):
    for mistake in MISTAKES:
        try:
            mistake(daemon, judge)
        except Violation as violation:
            print(f"found {mistake.__name__}: {str(violation)[:90]}")
        else:
            raise Violation(f"the judge does not see {mistake.__name__}")
