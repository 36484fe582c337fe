"""A service manager for one daemon: hears what it says, keeps what it hands over, and starts it again with that.

Commands come line by line: start, kill, hup, term. What the daemon says is printed, each word on a line.
"""

import array
import os
import signal
import socket
import subprocess
import sys
import threading

directory, arguments = sys.argv[1], sys.argv[2:]
path = os.path.join(directory, "notify")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
kept = {}


def say(line):
    print(line, flush=True)


def listen():
    while True:
        message, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(64))
        words = message.decode().split("\n")
        fds = array.array("i")
        for _, _, data in control:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        names = [word[len("FDNAME="):] for word in words if word.startswith("FDNAME=")]
        if "FDSTOREREMOVE=1" in words:
            kept.pop(names[0], None)
        elif fds:
            kept[names[0]] = fds[0]
        for word in words:
            if word:
                say(word)


def start():
    environment = dict(os.environ, NOTIFY_SOCKET=path, WATCHDOG_USEC="600000")
    fds = list(kept.values())

    def hand_over():
        # High first, so that none is overwritten before it is moved.
        high = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
        os.closerange(3, 100)
        for index, fd in enumerate(high):
            os.dup2(fd, 3 + index)
        os.closerange(3 + len(fds), 200)
        if fds:
            environment.update(
                LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(kept), LISTEN_PID=str(os.getpid())
            )
        os.execve(arguments[0], arguments, environment)

    log = open(os.path.join(directory, "log"), "ab")
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stderr=log, close_fds=False, preexec_fn=hand_over
    )


threading.Thread(target=listen, daemon=True).start()
daemon = None
for command in sys.stdin:
    command = command.strip()
    if command == "start":
        daemon = start()
    elif command == "kill":
        daemon.kill()
        daemon.wait()
        say("killed")
    elif command == "hup":
        daemon.send_signal(signal.SIGHUP)
    elif command == "term":
        daemon.terminate()
        daemon.wait()
        say("ended")
if daemon:
    daemon.kill()
    daemon.wait()
