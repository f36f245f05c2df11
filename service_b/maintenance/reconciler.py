"""The reconciler: what makes sure that every accepted task ends."""

import asyncio
from datetime import timedelta
from uuid import UUID

import asyncpg
import structlog

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.messages import Outcome, OutcomeKind
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime import clock
from service_b import metrics
from service_b.database import STORAGE_ERRORS, DatabaseSettings, connect
from service_b.maintenance.watermark import Watermark
from service_b.tasks import deployment, expiry, overdue, promotion

log = structlog.stdlib.get_logger(__name__)

TICK_SECONDS = 1.0
LOCK_TICK_SECONDS = 5.0
BATCH = 1000
LOCK_KEY = 7776
LOCK_LOST_SECONDS = 60
"""After so long without a word from its holder the database gives the lock to another process."""


class Reconciler:
    """Ends tasks past their deadline, reports attempts whose outcome is overdue, promotes stranded tasks.

    One at a time over all processes: whoever holds an advisory lock on a connection of its own.
    """

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        broker: BrokerSettings,
        database: DatabaseSettings,
        *,
        tick_seconds: float = TICK_SECONDS,
        lock_tick_seconds: float = LOCK_TICK_SECONDS,
    ) -> None:
        self._tick_seconds = tick_seconds
        self._lock_tick_seconds = lock_tick_seconds
        self._session = session
        self._pool = pool
        self._broker = broker
        self._database = database
        self._stranded_after = ""
        self._reported: dict[tuple[UUID, int], float] = {}
        self.leading = False
        """Whether it is this process's turn."""

    async def run(self) -> None:
        """Reconcile whenever it is this process's turn, until cancelled."""
        while True:
            try:
                await self._hold_lock()
            except STORAGE_ERRORS as error:
                log.warning("reconciler.storage_unavailable", error=repr(error), retry_in=self._lock_tick_seconds)
            except Exception:
                log.exception("reconciler.bug", retry_in=self._lock_tick_seconds)
            await asyncio.sleep(self._lock_tick_seconds)

    async def _hold_lock(self) -> None:
        connection: asyncpg.Connection = await connect(self._database)
        try:
            while not await deployment.try_to_lead(connection, LOCK_KEY):
                await asyncio.sleep(self._lock_tick_seconds)
            log.info("reconciler.leading")
            self.leading = True
            channel, watermark = None, Watermark()
            await connection.execute(f"SET idle_session_timeout = '{LOCK_LOST_SECONDS}s'")
            while True:
                # The lock lives as long as this connection: if this fails, another process may lead.
                await connection.execute("SELECT 1")
                await self._expire()
                await self._promote_stranded()
                current = self._session.current
                if current is not channel:
                    # What the last channel saw is void: outcomes that wait for the broker must get time to arrive.
                    channel, watermark = current, Watermark()
                if channel:
                    await self._report_overdue(channel, watermark)
                await asyncio.sleep(self._tick_seconds)
        finally:
            self.leading = False
            connection.terminate()

    async def _expire(self) -> None:
        while True:
            async with self._pool.acquire() as connection:
                expired = await expiry.expire(connection, BATCH)
            if not expired:
                return
            metrics.EXPIRED.inc(len(expired))
            metrics.FINISHED.labels(500).inc(len(expired))
            for task_id in expired:
                log.warning("task.expired", task_id=str(task_id))

    async def _promote_stranded(self) -> None:
        self._stranded_after, promoted = await promotion.promote_stranded(self._pool, self._stranded_after, BATCH)
        if promoted:
            metrics.STRANDED.inc(promoted)
            log.warning("reconciler.stranded", tasks=promoted)

    async def _report_overdue(self, channel: Channel, watermark: Watermark) -> None:
        """Report attempts as unknown whose message was taken, and whose call's time limit has passed after that."""
        lateness = self._broker.lateness_seconds
        await self._look_at_queue(channel, watermark)
        if not watermark.observed:
            return
        taken_before = watermark.observed[-1][1]
        # A report, too, may wait in its queue while the results process is away.
        now = clock.now()
        self._reported = {key: at for key, at in self._reported.items() if now < at + lateness}
        for attempt in await overdue.without_outcome(self._pool, taken_before, lateness, BATCH):
            taken_at = watermark.known_taken_at(attempt.dispatched_at)
            if taken_at is None or now < taken_at + attempt.time_limit_seconds + lateness:
                continue
            if (attempt.id, attempt.number) in self._reported:
                continue
            outcome = Outcome(
                task_id=attempt.id, attempt=attempt.number, kind=OutcomeKind.UNKNOWN, reason="no outcome in time"
            )
            letter = Letter(f"{outcome.message_id}:overdue", outcome.encode())
            if await channel.publish(self._broker.configured_key, [letter]) != [Publication.CONFIRMED]:
                return
            self._reported[attempt.id, attempt.number] = now
            metrics.OVERDUE.inc()
            log.warning("task.overdue", task_id=str(attempt.id), attempt=attempt.number)

    async def _look_at_queue(self, channel: Channel, watermark: Watermark) -> None:
        """Observe what must have been taken. A dispatch may reach the queue late, by `lateness` at most."""
        lateness = timedelta(seconds=self._broker.lateness_seconds)
        newest = await overdue.newest_dispatched(self._pool)
        if newest is None:
            watermark.canaries.clear()
            return
        if not watermark.canaries or newest.dispatched_at > watermark.canaries[-1].dispatched_at + lateness:
            watermark.canaries.append(newest)
        answered = await overdue.latest_answered(self._pool, watermark.canaries)
        if answered:
            while watermark.canaries and watermark.canaries[0].dispatched_at <= answered:
                watermark.canaries.popleft()
            watermark.observe(answered - lateness)
        if not await channel.accepts_publishes():
            # Outcomes of calls that have ended wait for the broker, too: they must get time to arrive.
            watermark.observed.clear()
            return
        before = await overdue.now(self._pool)
        if await channel.ready_messages(self._broker.to_configure_queue) == 0:
            watermark.observe(before - lateness)
