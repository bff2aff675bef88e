"""One request as the front sees it: what decides how it is answered, read once from the ASGI scope."""

from __future__ import annotations

from typing import Any, NamedTuple

API = "/api/v1/"


class Request:
    """A request whose body is not read yet."""

    __slots__ = ("_headers", "id", "method", "path", "query", "scope")

    def __init__(self, scope: dict[str, Any], id_: str = "") -> None:
        self.scope = scope
        self.id = id_
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: str = scope["query_string"].decode("latin-1")
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._headers = dict(headers)
        if len(self._headers) < len(headers):
            self._headers = _joined(headers)

    @property
    def reads_the_api(self) -> bool:
        return self.method in ("GET", "HEAD") and self.path.startswith(API)

    def header(self, name: bytes) -> str | None:
        """The value of a header, whose name is given in lower case; several are joined by commas."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    def with_query(self, query: str) -> Request:
        """The same request with another query."""
        return Request({**self.scope, "query_string": query.encode("latin-1")}, self.id)

    def without(self, name: bytes) -> Request:
        """The same request without a header, whose name is given in lower case."""
        headers = [line for line in self.scope["headers"] if line[0] != name]
        return Request({**self.scope, "headers": headers}, self.id)


class Body(NamedTuple):
    """What was gathered of a body, and the length that Flask is told: it refuses what is too long."""

    content: bytes
    length: int


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b"," + value if name in joined else value
    return joined
