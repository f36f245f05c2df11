"""Internal time: the database's clock, but for the jumps that it makes when somebody sets it.

Tasks are due, late and past their deadline by internal time, which all statements read as `states.NOW`: the clock of
the database and a correction. Each process also keeps an estimate of it, by its own monotonic clock. Where the
database's clock jumps, all estimates go on, and the process that leads the maintenance changes the correction so that
internal time does, too.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog

from runtime import clock
from service_b.database import STORAGE_ERRORS, Connection, Queries

log = structlog.stdlib.get_logger(__name__)

LOOK = "SELECT now() + correction, correction FROM task_clock"

CORRECT = """
WITH mine AS MATERIALIZED (SELECT one FROM task_clock WHERE correction = $1 FOR UPDATE SKIP LOCKED)
UPDATE task_clock SET correction = correction - $2::interval WHERE one = ANY(ARRAY(SELECT one FROM mine))
RETURNING true
"""

LOOK_SECONDS = 1.0
JUMP_SECONDS = 1.0
"""Clocks that are disciplined or drift apart differ by less, from one look to the next."""
ERROR_SECONDS = 0.2
"""An estimate is better than this, as soon as one answer of many has come quickly."""
SETTLE_SECONDS = 3.0
"""So long a new estimate is not believed: the clock may have jumped just before, and who knows better corrects that."""
PATIENCE_SECONDS = 30.0
"""After so long without a correction it is the estimate that is wrong: this machine stood still, and its clock too."""


@dataclass(frozen=True, slots=True)
class Jump:
    """How far the database's clock has jumped ahead (less than 0: back), under which correction."""

    by: timedelta
    correction: timedelta


class Clock:
    """An estimate of internal time that follows the database's clock, but not its jumps.

    A look at the database shows that internal time was what it says at some moment between question and answer. The
    estimate moves only as far as that proves it wrong; an answer that took long is no use.
    """

    def __init__(self, now: Callable[[], float] = clock.now, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._now = now
        self._settle_seconds = settle_seconds
        # Internal time less the monotonic one, in seconds.
        self._offset: float | None = None
        # When it was estimated first, until it has proved right for long enough.
        self._new_since: float | None = None
        # Since when each look has shown another time.
        self._doubted_at: float | None = None

    def now(self) -> datetime | None:
        """Tell internal time; None until the looks of some seconds have agreed."""
        return (
            None
            if self._offset is None or self._new_since is not None
            else datetime.fromtimestamp(self._now() + self._offset, UTC)
        )

    def at_least(self) -> datetime | None:
        """Tell what internal time is not less than, whatever the database says; None when nothing is known."""
        return (now := self.now()) and now - timedelta(seconds=ERROR_SECONDS)

    def at_most(self) -> datetime | None:
        """Tell what internal time is not more than, whatever the database says; None before the first look.

        Also by an estimate that is new: were it too low, what is due would wait for some seconds, and no longer.
        """
        if self._offset is None:
            return None
        return datetime.fromtimestamp(self._now() + self._offset + ERROR_SECONDS, UTC)

    async def follow(self, pool: asyncpg.Pool, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                async with pool.acquire() as connection:
                    await self.look(connection)
            except STORAGE_ERRORS as error:
                log.debug("clock.storage_unavailable", error=repr(error), retry_in=look_seconds)
            await asyncio.sleep(look_seconds)

    async def look(self, connection: Connection) -> Jump | None:
        """Look at the database's clock; return how far it has jumped, as long as nobody has corrected that."""
        asked_at = self._now()
        [(seen, correction)] = await connection.fetch(LOOK)
        by = self.observe(seen.timestamp(), asked_at, self._now())
        return Jump(timedelta(seconds=by), correction) if by else None

    def observe(self, seen: float, asked_at: float, answered_at: float) -> float:
        """Compare with what was seen between two moments; return by how many seconds it has jumped ahead, or 0."""
        if answered_at - asked_at > JUMP_SECONDS:
            return 0.0
        least, most = seen - answered_at, seen - asked_at
        if self._offset is None:
            self._offset, self._new_since = (least + most) / 2, answered_at
        proven = min(max(self._offset, least), most) - self._offset
        if self._new_since is not None:
            if abs(proven) > JUMP_SECONDS:  # Either may have been wrong.
                self._offset, self._new_since = (least + most) / 2, answered_at
                return 0.0
            if answered_at >= self._new_since + self._settle_seconds:
                self._new_since = None
        if abs(proven) > JUMP_SECONDS:
            self._doubted_at = answered_at if self._doubted_at is None else self._doubted_at
            if answered_at < self._doubted_at + PATIENCE_SECONDS:
                return (least + most) / 2 - self._offset
        self._offset += proven
        self._doubted_at = None
        return 0.0


async def correct(connection: Queries, jump: Jump) -> bool:
    """Let internal time go on as before a jump; False when another process has corrected it, or holds the row."""
    corrected: bool | None = await connection.fetchval(CORRECT, jump.correction, jump.by)
    return corrected is not None
