"""Growing, jittered pauses between tries of anything that fails."""

from __future__ import annotations

import random


class Backoff:
    """Jittered exponential pauses in seconds; `reset` after a success.

    The n-th pause lies between half of and the whole `min(longest, shortest * 2**n)`, so that
    many clients that lost the same server do not come back at the same moment.
    """

    def __init__(self, shortest: float = 0.1, longest: float = 30.0) -> None:
        self.shortest = shortest
        self.longest = longest
        self.tries = 0

    def next(self) -> float:
        """The pause before the next try."""
        # 2**60 pauses would be longer than any limit: a bound keeps the float finite.
        ceiling = min(self.longest, self.shortest * 2.0 ** min(self.tries, 60))
        self.tries += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self.tries = 0
