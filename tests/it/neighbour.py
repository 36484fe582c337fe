"""Either lives next door, with everything that could be reached: or tries to reach it, and says what came out."""

import os
import socket
import sys
import time

PORT, NAME, FILES = 7777, "\0neighbour", ["secret", "/tmp/secret", "/dev/shm/secret"]


def live():
    tcp = socket.create_server(("127.0.0.1", PORT))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(NAME)
    unix.listen()
    for path in FILES:
        try:
            with open(path, "w") as file:
                file.write("x")
        except OSError:
            pass
    print("at home", flush=True)
    time.sleep(1000)


def connect_by_name():
    socket.socket(socket.AF_UNIX).connect(NAME)


def reach(workspace, pid, host_port):
    attempts = {
        "its port": lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1),
        "a port of the host": lambda: socket.create_connection(("127.0.0.1", host_port), timeout=1),
        "its socket": connect_by_name,
        "its temporary files": lambda: open("/tmp/secret"),
        "its shared memory": lambda: open("/dev/shm/secret"),
        "its workspace": lambda: open(f"{workspace}/secret"),
        "its workspace beside ours": lambda: open(f"../{os.path.basename(workspace)}/secret"),
        "its workspace through it": lambda: open(f"/proc/{pid}/cwd/secret"),
        "its memory": lambda: open(f"/proc/{pid}/mem", "rb"),
        "its process": lambda: os.kill(pid, 0),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            print("reached:", name)
        except OSError:
            pass
    print("tried")


if sys.argv[1:]:
    reach(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
else:
    live()
