"""The reconciler: what makes sure that every accepted task ends."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

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
from service_b.database import STORAGE_ERRORS
from service_b.maintenance.watermark import Watermark
from service_b.tasks import clock as task_clock
from service_b.tasks import expiry, leadership, mending, overdue, promotion
from service_b.tasks.clock import Clock
from service_b.tasks.overdue import Attempt

log = structlog.stdlib.get_logger(__name__)

ROUND_SECONDS = 1.0
BATCH = 1000


class Reconciler:
    """Ends tasks past their deadline, reports attempts whose outcome is overdue, promotes stranded tasks.

    The process that leads does this in rounds; the others only look at the clock, and whether it is their turn.
    """

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        broker: BrokerSettings,
        internal: Clock,
        *,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        self._round_seconds = round_seconds
        self._session = session
        self._pool = pool
        self._broker = broker
        self._internal = internal
        self._id = uuid4()
        self._stranded_after = ""
        self._reported: dict[tuple[UUID, int], float] = {}
        self._channel: Channel | None = None
        self._watermark = Watermark()
        self.leading = False
        """Whether it is this process's turn."""
        self._round_at = clock.now()

    async def run(self) -> None:
        """Reconcile whenever it is this process's turn, until cancelled."""
        metrics.ROUND_AGE.set_function(lambda: clock.now() - self._round_at)
        while True:
            is_done = True
            try:
                await self._take_turn()
                if self.leading:
                    is_done = await self._go_round()
                self._round_at = clock.now()
            except STORAGE_ERRORS as error:
                self._turn(leads=False)
                log.warning("reconciler.storage_unavailable", error=repr(error), retry_in=self._round_seconds)
            except Exception:
                log.exception("reconciler.bug", retry_in=self._round_seconds)
            await asyncio.sleep(self._round_seconds if is_done else 0)

    async def _take_turn(self) -> None:
        async with self._pool.acquire() as connection:
            jump = await self._internal.look(connection)
            self._turn(leads=await leadership.lead(connection, self._id))
            now = self._internal.now()
            if now and jump and self.leading and await task_clock.correct(connection, jump):
                await mending.mend(connection, now, jump.by)
                metrics.CLOCK_JUMPS.inc()
                log.error("reconciler.clock_jumped", seconds=jump.by.total_seconds())

    def _turn(self, *, leads: bool) -> None:
        if leads != self.leading:
            log.info("reconciler.leading" if leads else "reconciler.not_leading")
            self._channel = None
        self.leading = leads
        metrics.LEADING.set(leads)

    async def _go_round(self) -> bool:
        """Do some of all that is to be done; tell whether that was all of it."""
        expired = await self._expire()
        await self._promote_stranded()
        if current := self._session.current:
            if current is not self._channel:
                # What the last channel saw is void: outcomes that wait for the broker must get time to arrive.
                self._channel, self._watermark = current, Watermark()
            await self._report_overdue(current, self._watermark)
        return expired < BATCH

    async def _expire(self) -> int:
        async with self._pool.acquire() as connection:
            expired = await expiry.expire(connection, BATCH)
            expired += await expiry.end_used_up(connection, BATCH)
        metrics.EXPIRED.inc(len(expired))
        metrics.FINISHED.labels(500).inc(len(expired))
        for task_id in expired:
            log.warning("task.expired", task_id=str(task_id))
        return len(expired)

    async def _promote_stranded(self) -> None:
        self._stranded_after, promoted = await promotion.promote_stranded(self._pool, self._stranded_after, BATCH)
        if promoted:
            metrics.STRANDED.inc(promoted)
            log.warning("reconciler.stranded", tasks=promoted)

    async def _report_overdue(self, channel: Channel, watermark: Watermark) -> None:
        """Report attempts as unknown whose message was taken, and whose call's time limit has passed after that."""
        lateness = self._broker.lateness_seconds
        await self._look_at_queue(channel, watermark)
        # A report, too, may wait in its queue while the results process is away.
        now = clock.now()
        self._reported = {key: at for key, at in self._reported.items() if now < at + lateness}
        for attempt in await overdue.calls_without_outcome(self._pool, BATCH):
            if not await self._report(channel, attempt):
                return
        if not watermark.observed:
            return
        taken_before = watermark.observed[-1][1]
        for attempt in await overdue.without_outcome(self._pool, taken_before, lateness, BATCH):
            taken_at = watermark.known_taken_at(attempt.dispatched_at)
            if taken_at is None or now < taken_at + attempt.time_limit_seconds + lateness:
                continue
            if not await self._report(channel, attempt):
                return

    async def _report(self, channel: Channel, attempt: Attempt) -> bool:
        """Report an attempt, unless that has been done; False when the broker cannot take the report."""
        if (attempt.id, attempt.number) in self._reported:
            return True
        outcome = Outcome(
            task_id=attempt.id, attempt=attempt.number, kind=OutcomeKind.UNKNOWN, reason="no outcome in time"
        )
        letter = Letter(f"{outcome.message_id}:overdue", outcome.encode())
        if await channel.publish(self._broker.configured_key, [letter]) != [Publication.CONFIRMED]:
            return False
        self._reported[attempt.id, attempt.number] = clock.now()
        metrics.OVERDUE.inc()
        log.warning("task.overdue", task_id=str(attempt.id), attempt=attempt.number)
        return True

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
