"""HTTP by hand, for what clients rarely do: bytes as a test wants them in; answers and events out."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def index(self) -> int:
        return int(self.headers["x-lictor-index"])

    @property
    def told(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Frame:
    """One event of a stream."""

    id: int
    type: str
    data: Any


@dataclass
class Connection:
    """One connection to a server at HOST:PORT, with `room` bytes for what is not read, if it is given."""

    bind: str
    room: int | None = None
    sock: socket.socket = field(init=False)
    _unread: bytes = b""
    # What has come of a body in chunks and is not taken out of them yet; None where no such body comes.
    _chunked: bytes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        host, _, port = self.bind.partition(":")
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        if self.room is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.room)
        self.sock.connect((host, int(port)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sock.close()

    def ask(self, target: str, *, method: str = "GET", version: str = "1.1", **headers: str) -> None:
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def head(self) -> Answer:
        """The status and headers of the next answer."""
        head = self._until(b"\r\n\r\n")
        assert head, "the connection was closed before an answer"
        line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines)}
        if headers.get("transfer-encoding") == "chunked":
            self._chunked, self._unread = self._unread, b""
            self._take_chunks()
        return Answer(int(line.split()[1]), headers, b"")

    def answer(self, *, is_head: bool = False) -> Answer:
        """The next answer, whole."""
        answer = self.head()
        length = 0 if is_head else int(answer.headers.get("content-length", 0))
        while len(self._unread) < length:
            assert self._receive(), "the connection was closed within an answer"
        body, self._unread = self._unread[:length], self._unread[length:]
        return Answer(answer.status, answer.headers, body)

    def frame(self) -> Frame | None:
        """The next event of a stream, None once it has ended. Comments and other blocks are left out."""
        while block := self._until(b"\n\n"):
            fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if ": " in line)
            if "data" in fields:
                return Frame(int(fields["id"]), fields["event"], json.loads(fields["data"]))
        return None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come that was not read."""
        self.sock.setblocking(False)
        try:
            return not self._unread and not self._receive_now()
        finally:
            self.sock.settimeout(PATIENCE)

    def is_closed(self) -> bool:
        """Waits for the other end to close the connection, whatever comes before."""
        try:
            while self._receive():
                pass
        except ConnectionResetError:
            pass
        return True

    def _until(self, end: bytes) -> bytes:
        """All up to and with `end`; empty if the connection is closed before."""
        while end not in self._unread:
            if not self._receive():
                return b""
        at = self._unread.index(end) + len(end)
        found, self._unread = self._unread[:at], self._unread[at:]
        return found

    def _receive(self) -> bool:
        data = self.sock.recv(1 << 16)
        if self._chunked is None:
            self._unread += data
        else:
            self._chunked += data
            self._take_chunks()
        return bool(data)

    def _take_chunks(self) -> None:
        while self._chunked and b"\r\n" in self._chunked:
            size, _, rest = self._chunked.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            self._unread += rest[:length]
            self._chunked = rest[length + 2 :]

    def _receive_now(self) -> bool:
        try:
            return self._receive()
        except BlockingIOError:
            return False
