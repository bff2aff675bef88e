"""Finds out whether another process of this machine keeps the same registration.

Several workers of one server announce one instance, and each of them ends in its own time. Each
holds a shared lock on one file per registration. The one that leaves tries to lock the file for
itself alone: where that fails, others still stand for the instance, and it is left registered.
The file holds the word of the newest of them: where two disagree about what is registered, the
newest wins, as if it were alone. The kernel frees the lock of a process that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Longer than a leaving process may take to deregister: it holds the lock alone in that time."""
_PAUSE = 0.05


class PeerLock:
    """One process's part in a registration. Where there is no place for the file, it stands alone."""

    def __init__(self, key: str) -> None:
        self._name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._word = f"{os.getpid()}:{secrets.token_hex(8)}".encode()
        self._file: int | None = None

    async def join(self) -> None:
        """Counts this process in, as the newest, when nobody is about to deregister."""
        try:
            self._file = await self._locked_file()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._word, 0)
        except OSError as exc:
            logger.debug("cannot tell whether other processes keep the same registration: %s", exc)

    def is_newest(self) -> bool:
        """Whether no other living process joined after this one."""
        if self._file is None:
            return True
        word = os.pread(self._file, 100, 0)
        return word == self._word or not _lives(word)

    def is_last(self) -> bool:
        """Whether nobody else keeps the registration; if so, nobody joins until this one leaves.

        It is asked on leaving only: of several that leave at once, one at least hears yes.
        """
        if self._file is None:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return _try_lock(self._file, fcntl.LOCK_EX)

    def leave(self) -> None:
        # A file that cannot be removed harms nobody.
        with contextlib.suppress(OSError):
            if self._file is not None and self.is_last():
                (_folder() / self._name).unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Lets go of the file without a word; what a forked child does with its parent's."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    async def _locked_file(self) -> int:
        path = _folder() / self._name
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if _try_lock(file, fcntl.LOCK_SH) and _is_at(file, path):
                return file
            os.close(file)
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{path} stayed locked for {_PATIENCE:g} s")
            await asyncio.sleep(_PAUSE)


def _folder() -> Path:
    """A folder of this user alone; raises OSError where there can be none."""
    folder = Path(tempfile.gettempdir()) / f"lictor-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} must belong to this user alone (mode 700)")
    return folder


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether the locked file is still the one of that name: the last to leave removes it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lives(word: bytes) -> bool:
    pid = word.partition(b":")[0]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
