"""A job for the supervisor of a server: a server without torch that fails when it is asked to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path


def serve(place: Path, sock: socket.socket, channel: socket.socket) -> int:
    """Answer each request with this process's id, or do what its path says. A file `fail` in the folder holds an exit
    code, with which the job ends at once.
    """
    with (place / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {time.monotonic()}\n")
    if (place / "fail").exists():
        return int((place / "fail").read_text())
    if (place / "abort").exists():
        os.abort()
    return asyncio.run(_serve(place, sock, channel))


async def _serve(place: Path, sock: socket.socket, channel: socket.socket) -> int:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        asyncio.get_running_loop().add_signal_handler(number, lambda code=code: ended.done() or ended.set_result(code))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path == "/abort":
            os.abort()
        if path == "/hang":
            time.sleep(1000)
        if path.startswith("/exit"):
            os._exit(int(path.removeprefix("/exit")))
        body = str(os.getpid())
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        writer.close()

    server = await asyncio.start_server(answer, sock=sock)
    while not ended.done():
        try:
            channel.send(b".")
        except OSError:
            (place / "left").touch()
            return 0
        await asyncio.wait([ended], timeout=0.05)
    server.close()
    return ended.result()
