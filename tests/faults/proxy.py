"""A TCP proxy that misbehaves on demand: an address to stand before in, bytes passed on or spoilt out."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

HOST = "127.0.0.1"
_SLICE = 0.1
_AT_ONCE = 65536


class Trouble(StrEnum):
    """What the proxy does to connections."""

    NONE = "none"
    DELAY = "delay"
    """Holds every answer back for a while."""
    CUT = "cut"
    """Breaks the connections there are, and refuses new ones."""
    HALF_OPEN = "half-open"
    """Keeps connections and takes new ones, but passes nothing on."""
    TRUNCATE = "truncate"
    """Ends a connection within an answer."""
    CORRUPT = "corrupt"
    """Puts bytes into answers that no text may hold."""


@dataclass
class _Pair:
    """A client's connection and its counterpart to the server."""

    client: socket.socket
    server: socket.socket

    def end(self) -> None:
        for side in (self.client, self.server):
            # A reset: the other side must not take it for the proper end of an answer.
            with suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes connections on to `upstream` (host and port), as `trouble` says; a context manager.

    `suffered` counts the answers that were spoilt or held back, and the connections that were
    broken or refused: a trouble that met nobody proves nothing.
    """

    def __init__(self, upstream: tuple[str, int], *, seed: int = 0) -> None:
        self.upstream = upstream
        self.suffered = 0
        self._random = random.Random(seed)
        self._trouble = Trouble.NONE
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def trouble(self) -> Trouble:
        return self._trouble

    def make(self, trouble: Trouble) -> None:
        """From now on there is this trouble, and no other."""
        with self._lock:
            was, self._trouble = self._trouble, trouble
            pairs = list(self._pairs)
        # What was held open without an answer would be so for ever: its bytes are lost.
        if trouble is Trouble.CUT or was is Trouble.HALF_OPEN:
            self.suffered += len(pairs)
            for pair in pairs:
                pair.end()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.end()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), name="proxied", daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        server = None
        if self._trouble is not Trouble.CUT:
            with suppress(OSError):
                server = socket.create_connection(self.upstream, 5)
        if server is None:
            self.suffered += 1
            _Pair(client, client).end()
            client.close()
            return
        server.settimeout(None)
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.append(pair)
        asking = threading.Thread(target=self._pass_requests, args=(pair,), name="requests", daemon=True)
        asking.start()
        self._pass_answers(pair)
        pair.end()
        asking.join()
        with self._lock:
            self._pairs.remove(pair)
        client.close()
        server.close()

    def _pass_requests(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(_AT_ONCE):
                self._hold_while_half_open()
                pair.server.sendall(data)
        pair.end()

    def _pass_answers(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(_AT_ONCE):
                self._hold_while_half_open()
                self._pass_answer(pair, data)

    def _pass_answer(self, pair: _Pair, data: bytes) -> None:
        match self._trouble:
            case Trouble.DELAY:
                self.suffered += 1
                self._ended.wait(self._random.uniform(0.05, 0.4))
            case Trouble.TRUNCATE:
                self.suffered += 1
                pair.client.sendall(data[: self._random.randrange(len(data))])
                raise ConnectionResetError("truncated")
            case Trouble.CORRUPT:
                self.suffered += 1
                data = self._corrupted(data)
        pair.client.sendall(data)

    def _corrupted(self, data: bytes) -> bytes:
        """The data with a byte that is neither ASCII nor UTF-8 in some place: it can be noticed."""
        place = self._random.randrange(len(data))
        return data[:place] + b"\xff" + data[place + 1 :]

    def _hold_while_half_open(self) -> None:
        if self._trouble is Trouble.HALF_OPEN:
            self.suffered += 1
        while self._trouble is Trouble.HALF_OPEN and not self._ended.is_set():
            self._ended.wait(_SLICE)
