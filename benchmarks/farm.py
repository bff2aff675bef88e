"""Serves manifests of any module, quickly, from a process of its own: `/NAME` is where NAME's is.

Run as `python -m benchmarks.farm` it prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import cache

from benchmarks.stage import HOST, Client
from manifest_cache.manifest import parse_manifest

_COUNT = b"requests-so-far"


@cache
def manifest(module: str) -> bytes:
    """Some 2 kB."""
    routes = [{"path": f"/{number}", "title": "A page of it"} for number in range(40)]
    return json.dumps({"name": module, "version": "1.0.0", "routes": routes}).encode()


def digest(module: str) -> str:
    return parse_manifest(manifest(module)).digest


class Farm:
    """The server, running; a context manager."""

    def __enter__(self) -> Farm:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.farm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()

    def requests(self) -> int:
        """How many manifests were asked for so far."""
        return int(Client(f"{HOST}:{self.port}").done("GET", f"/{_COUNT.decode()}"))


class _Conversation(asyncio.Protocol):
    requests = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"\r\n\r\n"):
            return
        name = self._received.split(b" ", 2)[1][1:]
        if name == _COUNT:
            body = str(_Conversation.requests).encode()
        else:
            _Conversation.requests += 1
            body = manifest(name.decode())
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        self._transport.close()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Conversation, HOST, 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
