"""What programs in Python do."""

import asyncio
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import tempfile
import threading

results = []
threads = [threading.Thread(target=results.append, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(results) == 8
assert subprocess.run(["id", "-u"], capture_output=True, check=True).stdout


async def talk():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    assert (await child.communicate(b"through a pipe"))[0] == b"through a pipe"

    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()


asyncio.run(talk())
ssl.create_default_context()
ours, theirs = socket.socketpair()
ours.send(b"x")
assert theirs.recv(1) == b"x"
assert socket.if_nameindex()
with sqlite3.connect("work.db") as database:
    database.execute("pragma journal_mode = wal")
    database.execute("create table numbers (number)")
    database.executemany("insert into numbers values (?)", [(number,) for number in range(100)])
with tempfile.NamedTemporaryFile() as file:
    file.write(bytes(100_000))
    file.flush()
    shutil.copy(file.name, "copy")
os.replace("copy", "moved")
assert os.stat("moved").st_size == 100_000
print("fine")
