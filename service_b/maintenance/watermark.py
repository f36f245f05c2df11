"""Which messages of the queue `to_configure` must have been taken by now."""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from runtime import clock
from service_b.tasks.overdue import Attempt

OBSERVATIONS = 100_000
"""One a second: 27.8 h, and the longest time limit is 3,600 + 86,400 s = 25 h."""


@dataclass(slots=True)
class Watermark:
    """From when on which messages of `to_configure` are known to have been taken.

    The queue is first in, first out: everything dispatched before a moment has been taken once the queue has been
    seen empty after it, or once a later attempt has been answered. Observations are kept in order of both times.
    """

    observed: deque[tuple[float, datetime]] = field(default_factory=lambda: deque(maxlen=OBSERVATIONS))
    canaries: deque[Attempt] = field(default_factory=deque)
    """Attempts whose answer will show that everything dispatched before them has been taken."""

    def observe(self, taken_before: datetime) -> None:
        """Note that everything dispatched before this moment has been taken by now."""
        if not self.observed or taken_before > self.observed[-1][1]:
            self.observed.append((clock.now(), taken_before))

    def known_taken_at(self, dispatched_at: datetime) -> float | None:
        """Tell since when (in seconds of `clock.now`) a message dispatched then is known to have been taken."""
        position = bisect_right(self.observed, dispatched_at, key=lambda observation: observation[1])
        return self.observed[position][0] if position < len(self.observed) else None
