"""Runs a command that is killed when its parent dies: `exec_with_parent.py PARENT COMMAND...`.

Whoever dies of SIGKILL cannot end its children, so Linux does: it sends them SIGTERM. The wish for it
survives exec, hence the child itself, which has no other threads yet, can express it. Elsewhere the
command simply runs. Run by its path, with nothing imported that takes time.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
NOT_STARTED = 127
"""The exit status where the command could not be started, as shells give it."""


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before the wish was expressed.
        if os.getppid() != parent:
            sys.exit(0)
    try:
        os.execvp(command[0], command)  # noqa: S606 - there is no shell on purpose
    except OSError as exc:
        sys.stderr.write(f"{command[0]} cannot be started: {exc.strerror}\n")
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
