"""The connections of a process's clients, and what keeps some clients from taking them all.

Each connection is a descriptor, and a client may hold one for ever at no cost: it sends nothing, half a head, a byte a
second, or does not read its answer. So a client has little time, and where there are too many connections, those that
wait for their clients give way to new ones, the longest waiting first.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import structlog

from runtime import metrics
from runtime.malformed import MalformedLog

log = structlog.stdlib.get_logger(__name__)

SWEEP_SECONDS = 1.0
SPARE = 50
"""So many clients over the limit are told that there are too many; more are not even told."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients there may be, and how long each may take."""

    connections: int
    keepalive_seconds: float = 75
    """From an answer, or from connecting, to a request."""
    head_seconds: float = 10
    """From the first byte of a request's head to its last."""
    answer_seconds: float = 30
    """To take an answer, once it lies in our own buffer because the kernel takes no more."""


class Held(Protocol):
    """What is to be known of a connection here: `runtime.connection.Connection`."""

    waits_since: float

    def is_served(self) -> bool: ...
    def check(self, now: float) -> None: ...
    def abort(self) -> None: ...


class Connections:
    """All connections of the process. One timer looks after them; a timer each would cost as much as an answer."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.malformed = MalformedLog()
        self._open: set[Held] = set()
        self._dropped: Counter[str] = Counter()
        """Why, and how many in this second."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopping = False
        """Whether who is not being served has no more time than until the timer comes by."""

    def watch(self) -> None:
        """Look after them from now on."""
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def stop(self) -> None:
        """Wait only for those that wait for us: the process is to end."""
        self._is_stopping = True

    def close(self) -> None:
        """Look after them no longer."""
        if self._timer:
            self._timer.cancel()

    def add(self, new: Held) -> bool:
        """Give a new one its place; False where there is none."""
        self._open.add(new)
        if len(self._open) <= self.limits.connections:
            return True
        # Several at once: to find the longest waiting means to look at all.
        waiting = sorted(
            (one for one in self._open if one is not new and not one.is_served()), key=lambda one: one.waits_since
        )
        for one in waiting[: max(1, len(self._open) // 20)]:
            self.drop(one, "crowded")
        if len(self._open) > self.limits.connections + SPARE:
            self.drop(new, "flooded")
        return len(self._open) <= self.limits.connections

    def remove(self, one: Held) -> None:
        """Forget one that has ended."""
        self._open.discard(one)

    def drop(self, one: Held, reason: str) -> None:
        """End one at once; what its client has not taken is lost."""
        self._open.discard(one)
        self.count(reason)
        one.abort()

    def count(self, reason: str) -> None:
        """Count one that is ended, for the metrics and for the log."""
        metrics.DROPPED.labels(reason).inc()
        self._dropped[reason] += 1

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for one in list(self._open):
            one.check(now)
            if self._is_stopping and not one.is_served():
                self.drop(one, "stopping")
        metrics.CONNECTIONS.set(len(self._open))
        self.malformed.begin_second()
        if self._dropped:
            log.info("http.dropped", open=len(self._open), **self._dropped)
            self._dropped.clear()
        self.watch()
