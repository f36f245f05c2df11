"""The connections of a process's clients, and what keeps some clients from taking them all.

Each connection is a descriptor, and a client may hold one for ever at no cost: it sends nothing, half a head, a byte a
second, or does not read its answer. So a client has little time, and where there are too many connections, those that
wait for their clients give way to new ones.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from typing import Protocol

import structlog
from aiohttp import web

from runtime import metrics
from runtime.malformed import MalformedLog

log = structlog.stdlib.get_logger(__name__)

SWEEP_SECONDS = 1.0
FRESH_SECONDS = 0.2
"""How long a client may be awaited before it has to give way to others. What it sent in the queue is there at once."""

OWES = web.RequestKey("OWES", bool)
"""Whether something of a request has been taken, and not answered yet, though more of it is to come."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients there may be, and how long each may take."""

    connections: int
    keepalive_seconds: float = 75
    """From an answer, or from connecting, to a request."""
    head_seconds: float = 10
    """From the first byte of a request's head to its last, and for a TLS handshake."""
    answer_seconds: float = 30
    """To take an answer, once it lies in our own buffer because the kernel takes no more."""


class Claim(IntEnum):
    """What claim a connection has to its place, the weakest first."""

    NONE = 0
    """We wait for its client, or it has not taken its answer yet."""
    GREEDY = 1
    """Its client asks for more before it is answered, as one does that reads no answers."""
    FRESH = 2
    """We have not waited long for its client."""
    SERVED = 3
    """Its client waits for us."""


class Held(Protocol):
    """What is to be known of a connection here: `runtime.connection.Connection`, and `Handshake` before that."""

    @property
    def waits_since(self) -> float: ...
    def claim(self, now: float) -> Claim: ...
    def check(self, now: float) -> None: ...
    def abort(self) -> None: ...


class Connections:
    """All connections of the process. One timer looks after them; a timer each would cost as much as an answer."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.malformed = MalformedLog()
        self._open: set[Held] = set()
        self.coming = 0
        """Accepted, but not made yet."""
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

    def is_full(self) -> bool:
        """Tell whether there are as many as there may be."""
        return len(self._open) + self.coming >= self.limits.connections

    def make_room(self) -> bool:
        """Let those with the weakest claims give way, the longest waiting first; False where all claims are good."""
        # Several at once: to find them means to look at all.
        now = asyncio.get_running_loop().time()
        claims = [(one.claim(now), one.waits_since, one) for one in self._open]
        weak = sorted((each for each in claims if each[0] < Claim.FRESH), key=itemgetter(0, 1))
        for _, _, one in weak[: max(1, len(self._open) // 20)]:
            self.drop(one, "crowded")
        return not self.is_full()

    def add(self, new: Held) -> None:
        """Note one that has come."""
        self._open.add(new)

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
            if self._is_stopping and one.claim(now) < Claim.SERVED:
                self.drop(one, "stopping")
        metrics.CONNECTIONS.set(len(self._open))
        self.malformed.begin_second()
        if self._dropped:
            log.info("http.dropped", open=len(self._open), **self._dropped)
            self._dropped.clear()
        self.watch()
