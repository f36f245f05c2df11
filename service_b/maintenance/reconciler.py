"""The reconciler: what makes sure that every accepted task ends."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import uuid4

import asyncpg
import structlog

from runtime import clock
from service_b import metrics
from service_b.database import STORAGE_ERRORS, Connection
from service_b.tasks import clock as task_clock
from service_b.tasks import expiry, leadership, mending, overdue, promotion, starts
from service_b.tasks.clock import Clock

log = structlog.stdlib.get_logger(__name__)

ROUND_SECONDS = 1.0
BATCH = 1000
IDLE_SHARE = 4
"""It rests so many times as long as a round took. Under an old snapshot a round reads all that has changed since."""

MEND_SECONDS = 30.0
"""Longer than any statement of ours takes: what began before a jump was corrected may be committed afterwards."""


class Reconciler:
    """Starts scheduled tasks, ends those that nobody else ends, repeats dispatches that nobody began, promotes.

    The process that leads does this in rounds; the others only look at the clock, and whether it is their turn. All
    of it needs the database alone.
    """

    def __init__(self, pool: asyncpg.Pool, internal: Clock, *, round_seconds: float = ROUND_SECONDS) -> None:
        self._pool = pool
        self._internal = internal
        self._round_seconds = round_seconds
        self._id = uuid4()
        self._round_at = clock.now()
        self._rest_until = 0.0
        # How far the clock has jumped, and until when to mend what that has misdated.
        self._jump = timedelta()
        self._mend_until = 0.0
        self._stranded_after = ""
        self.leading = False
        """Whether it is this process's turn."""

    async def run(self) -> None:
        """Go round whenever it is this process's turn, until cancelled."""
        metrics.ROUND_AGE.set_function(lambda: clock.now() - self._round_at)
        while True:
            is_done = True
            try:
                async with self._pool.acquire() as connection:
                    await self._take_turn(connection)
                    if self.leading and (started := clock.now()) >= self._rest_until:
                        is_done = await self._go_round(connection)
                        self._rest_until = clock.now() + IDLE_SHARE * (clock.now() - started) * is_done
                self._round_at = clock.now()
            except STORAGE_ERRORS as error:
                self._turn(leads=False)
                log.warning("reconciler.storage_unavailable", error=repr(error), retry_in=self._round_seconds)
            except Exception:
                log.exception("reconciler.bug", retry_in=self._round_seconds)
            await asyncio.sleep(self._round_seconds if is_done else 0)

    async def whenever_leading(self, work: Callable[[], Awaitable[float | None]]) -> None:
        """Do more work of the kind, beside the rounds, until cancelled; it may tell how long to pause, in seconds."""
        while True:
            pause = None
            if self.leading:
                try:
                    pause = await work()
                except STORAGE_ERRORS as error:
                    log.warning("maintenance.storage_unavailable", error=repr(error), retry_in=self._round_seconds)
                except Exception:
                    log.exception("maintenance.bug", retry_in=self._round_seconds)
            await asyncio.sleep(max(pause or 0, self._round_seconds))

    async def _take_turn(self, connection: Connection) -> None:
        jump = await self._internal.look(connection)
        # Who has just started leaves it to those who know what time it is: they may have to correct it.
        now = self._internal.now()
        self._turn(leads=now is not None and await leadership.lead(connection, self._id, now))
        if now and jump and self.leading and await task_clock.correct(connection, jump):
            self._jump, self._mend_until = jump.by, clock.now() + MEND_SECONDS
            metrics.CLOCK_JUMPS.inc()
            log.error("reconciler.clock_jumped", seconds=jump.by.total_seconds())
        if now and self.leading and clock.now() < self._mend_until:
            await mending.mend(connection, now, self._jump)

    def _turn(self, *, leads: bool) -> None:
        if leads != self.leading:
            log.info("reconciler.leading" if leads else "reconciler.not_leading")
        self.leading = leads
        metrics.LEADING.set(leads)

    async def _go_round(self, connection: Connection) -> bool:
        """Do some of all that is to be done; tell whether that was all of it."""
        if (now := self._internal.now()) is None:
            return True
        started = await starts.start(connection, now, BATCH)
        expired = await expiry.expire(connection, now, BATCH)
        expired += await expiry.end_used_up(connection, now, BATCH)
        cancelled = sum(task.by == "cancel" for task in expired)
        metrics.CANCELLED.inc(cancelled)
        metrics.EXPIRED.inc(len(expired) - cancelled)
        metrics.FINISHED.labels(500).inc(len(expired))
        for task in expired:
            log.warning("task.cancelled" if task.by == "cancel" else "task.expired", task_id=str(task.id))
        silent = await overdue.repeat_dispatches(connection, now, BATCH)
        metrics.LOST_DISPATCHES.inc(len(silent))
        for task_id, attempt in silent:
            log.warning("task.not_begun", task_id=str(task_id), attempt=attempt)
        self._stranded_after, promoted = await promotion.promote_stranded(connection, self._stranded_after, BATCH)
        if promoted:
            metrics.STRANDED.inc(promoted)
            log.warning("reconciler.stranded", tasks=promoted)
        return max(started, len(expired), len(silent)) < BATCH
