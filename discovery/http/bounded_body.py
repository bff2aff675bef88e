"""Gathers the body of a response up to a size and a time, and unpacks it within the same size."""

from __future__ import annotations

import time
import zlib

from discovery.errors import RegistryUnavailable

# To zlib: with a header and a checksum of gzip's.
_GZIP = 16 + zlib.MAX_WBITS


class BoundedBody:
    """Gathers an answer's parts, up to a size, and up to a time after the first."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self._name = name
        self._limit = limit
        self._seconds = seconds
        self._deadline: float | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._seconds
        self._size += len(part)
        if self._size > self._limit:
            raise self._is_too_big()
        if now > self._deadline:
            raise RegistryUnavailable(f"{self._name}: the answer came too slowly and was not awaited")
        self._parts.append(part)

    def read(self) -> bytes:
        return b"".join(self._parts)

    def unpacked(self, coding: str) -> bytes:
        """All of it, unpacked; it is bounded too."""
        if coding in ("", "identity"):
            return self.read()
        if coding not in ("gzip", "x-gzip"):
            raise RegistryUnavailable(f"{self._name}: the answer is packed by {coding!r}, not by gzip")
        try:
            content = zlib.decompressobj(_GZIP).decompress(self.read(), self._limit + 1)
        except zlib.error as error:
            raise RegistryUnavailable(f"{self._name}: the answer cannot be unpacked: {error}") from error
        if len(content) > self._limit:
            raise self._is_too_big()
        return content

    def _is_too_big(self) -> RegistryUnavailable:
        return RegistryUnavailable(f"{self._name}: the answer is bigger than {self._limit} bytes")
