"""Somebody who watches a console over WebSocket, from before the first fault to the end."""

import base64
import json
import os
import socket
import struct
import threading

from machine import TOKEN

# A peer that says nothing for so long is asked again; what runs prints ten times a second.
SILENCE_SECONDS = 5


class Reader(threading.Thread):
    """Reads one console; whenever it is cut off, it comes back. What it finds wrong is in `found`."""

    def __init__(self, daemon, name):
        super().__init__(daemon=True)
        self.daemon_of, self.name_of = daemon, name
        self.found, self.lines, self.connections = None, 0, 0
        self.ended = threading.Event()
        self.start()

    def close(self):
        self.ended.set()
        self.join()

    def run(self):
        while not self.ended.wait(0.05):
            try:
                with self.connect() as stream:
                    self.connections += 1
                    self.follow(stream)
            except (OSError, ValueError, struct.error):
                # The daemon is gone, or the sandbox is: that is for others to judge.
                pass

    def connect(self):
        stream = socket.create_connection(("127.0.0.1", self.daemon_of.port), SILENCE_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        stream.sendall(
            f"GET /console/{self.name_of}?token={TOKEN}&tail=0 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.exactly(stream, 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            stream.close()
            raise OSError("not upgraded")
        return stream

    def exactly(self, stream, count):
        taken = b""
        while len(taken) < count:
            part = stream.recv(count - len(taken))
            if not part or self.ended.is_set():
                raise OSError("closed")
            taken += part
        return taken

    def frames(self, stream):
        while True:
            first, length = self.exactly(stream, 2)
            if length == 126:
                (length,) = struct.unpack(">H", self.exactly(stream, 2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.exactly(stream, 8))
            payload = self.exactly(stream, length)
            if first & 0xF == 1:
                yield json.loads(payload)

    def follow(self, stream):
        """Each start's lines come in order and without a hole, unless a gap is announced."""
        pending, last, whole = "", {}, False
        for frame in self.frames(stream):
            if frame["type"] == "gap":
                pending, last, whole = "", {}, False
            if frame["type"] != "output":
                continue
            *lines, pending = (pending + frame["content"]).split("\n")
            # The first may have begun before the connection.
            for line in lines if whole else lines[1:]:
                self.check(line, last)
            whole = whole or bool(lines)

    def check(self, line, last):
        run, _, number = line.partition(" ")
        if not (run.isdigit() and number.isdigit()):
            return
        if run in last and int(number) != last[run] + 1:
            self.found = f"the console of {self.name_of} goes from {last[run]} to {number} in {run}"
        last[run] = int(number)
        self.lines += 1
