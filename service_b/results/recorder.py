"""From the queue `configured` to the task table."""

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

import asyncpg
import structlog

from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge
from messaging.messages import DecodeError, Outcome
from messaging.session import Session
from runtime.background import until
from runtime.metrics import BATCH_SIZE
from service_b import metrics
from service_b.database import REFUSED_ROW, STORAGE_ERRORS
from service_b.results.decision import decide
from service_b.results.settings import Settings
from service_b.results.silence import Silence
from service_b.tasks import outcomes
from service_b.tasks.clock import Clock
from service_b.tasks.outcomes import Change, Counted, Key

log = structlog.stdlib.get_logger(__name__)

BATCH = 500
PREFETCH = 2 * BATCH
GATHER_SECONDS = 0.02
"""How long a batch may wait for more; next to a call of a minute nobody notices."""
PAUSE_SECONDS = 1.0
HELD_SECONDS = 0.5
"""After that long an outcome is tried again whose task's row somebody else held."""

End: TypeAlias = tuple[Change, Outcome, Delivery]
"""What an outcome does, and what brought it."""
Deliveries = asyncio.Queue[Delivery | None]
"""None: no delivery comes after it, the channel is lost or the process stops."""


class Recorder:
    """Takes all outcomes that have gathered, writes them down in one statement, and acknowledges after the commit."""

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        settings: Settings,
        internal: Clock,
        *,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._pause_seconds = pause_seconds
        self._session = session
        self._pool = pool
        self._settings = settings
        self._internal = internal
        self._silence = Silence(pool)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Record until stopped, over one channel after the other."""
        while channel := await until(self._stopping, anext(self._session)):
            deliveries: Deliveries = asyncio.Queue()
            channel.lost.add_done_callback(lambda _, ended=deliveries: ended.put_nowait(None))  # type: ignore[misc]
            consumer = await channel.consume(self._settings.configured_queue, PREFETCH, deliveries.put_nowait)
            stopping = asyncio.create_task(self._stop(channel, consumer, deliveries))
            try:
                await self._record_all(channel, deliveries)
            except Exception:
                log.exception("recorder.bug")  # The channel is closed, and its messages come again.
            finally:
                stopping.cancel()

    def stop(self) -> None:
        """Take no more; `run` returns when what was taken is recorded, or given back if the storage is away."""
        self._stopping.set()

    async def _stop(self, channel: Channel, consumer: str, deliveries: Deliveries) -> None:
        await self._stopping.wait()
        await channel.cancel(consumer)
        deliveries.put_nowait(None)

    async def _record_all(self, channel: Channel, deliveries: Deliveries) -> None:
        while first := await deliveries.get():
            if deliveries.qsize() < BATCH:
                await asyncio.sleep(GATHER_SECONDS)
            batch = [first]
            while len(batch) < BATCH and not deliveries.empty():
                following = deliveries.get_nowait()
                if following is None:
                    deliveries.put_nowait(None)
                    break
                batch.append(following)
            if channel.lost.done():
                return
            await self._record(channel, batch, deliveries)

    async def _record(self, channel: Channel, batch: Sequence[Delivery], deliveries: Deliveries) -> None:
        """Record a batch, asking the storage until a stop; dead-letter what cannot be read or stored.

        What somebody else holds the row of stays unacknowledged and comes again by `deliveries`, with a later batch.
        """
        BATCH_SIZE.labels("outcome").observe(len(batch))
        ends, unreadable = self._read(batch)
        held = await self._apply_until_stopped(channel, list(ends.values())) if ends else set()
        if held is None:
            return
        kept = {delivery.tag: delivery for _, _, delivery in map(ends.__getitem__, held)}
        if kept:
            log.warning("recorder.held", outcomes=len(kept), retry_in=HELD_SECONDS)
        for delivery in kept.values():
            asyncio.get_running_loop().call_later(HELD_SECONDS, deliveries.put_nowait, delivery)
        unsettled = {*unreadable, *kept}
        acknowledge(delivery for delivery in batch if delivery.tag not in unsettled)
        for delivery, reason in unreadable.values():
            await channel.dead_letter(self._settings.configured_queue, delivery, reason)
            acknowledge([delivery])
        await self._silence.note()

    def _read(self, batch: Sequence[Delivery]) -> tuple[dict[Key, End], dict[int, tuple[Delivery, str]]]:
        """Tell what a batch does, each attempt once, and by their tags which deliveries cannot be read, and why."""
        ends: dict[Key, End] = {}
        unreadable: dict[int, tuple[Delivery, str]] = {}
        for delivery in batch:
            try:
                outcome = Outcome.decode(delivery.body)
            except DecodeError as error:
                unreadable[delivery.tag] = (delivery, error.reason)
                continue
            change = decide(outcome, self._settings)
            if change.key in ends and change.code is None:
                metrics.OUTCOMES.labels("ignored").inc()
                continue
            ends[change.key] = (change, outcome, delivery)
        return ends, unreadable

    async def _apply_until_stopped(self, channel: Channel, ends: Sequence[End]) -> set[Key] | None:
        """Write outcomes down, however long the storage is away, and tell whose rows are held.

        None when the channel is lost meanwhile, or given up because of a stop: its messages come again.
        """
        while not channel.lost.done():
            try:
                return await self._apply(channel, ends)
            except STORAGE_ERRORS as error:
                log.warning("recorder.storage_unavailable", error=repr(error), retry_in=self._pause_seconds)
            except Exception:
                log.exception("recorder.bug", outcomes=len(ends), retry_in=self._pause_seconds)
            if self._stopping.is_set():
                channel.lose("stopped while outcomes cannot be written down")
                return None
            await until(self._stopping, asyncio.sleep(self._pause_seconds))
        return None

    async def _apply(self, channel: Channel, ends: Sequence[End]) -> set[Key]:
        """Write outcomes down, and tell which are to be tried again; dead-letter what is refused."""
        try:
            async with self._pool.acquire() as connection:
                applied = await outcomes.apply(
                    connection,
                    [change for change, _, _ in ends],
                    max_attempts=self._settings.max_attempts,
                    at_least=self._internal.at_least(),
                )
        except REFUSED_ROW as error:
            if len(ends) == 1:
                [(change, _, delivery)] = ends
                log.error("recorder.refused", task_id=str(change.id), attempt=change.attempt, error=repr(error))
                await channel.dead_letter(self._settings.configured_queue, delivery, f"refused: {type(error).__name__}")
                return set()
            half = len(ends) // 2
            return await self._apply(channel, ends[:half]) | await self._apply(channel, ends[half:])
        for change, outcome, _ in ends:
            if counted := applied.counted.get(change.key):
                self._silence.add(outcome)
                _tell(change, outcome, counted)
            elif change.key not in applied.held:
                metrics.OUTCOMES.labels("ignored").inc()
                log.info("outcome.ignored", task_id=str(change.id), attempt=change.attempt, kind=outcome.kind.value)
        return applied.held


def _tell(change: Change, outcome: Outcome, counted: Counted) -> None:
    metrics.OUTCOMES.labels(outcome.kind.value).inc()
    if counted.code is not None:
        metrics.FINISHED.labels(counted.code).inc()
        metrics.TASK_SECONDS.observe(time.time() - counted.accepted_at.timestamp())
    if counted.code != 200:
        log.info(
            "task.not_configured",
            task_id=str(change.id),
            attempt=change.attempt,
            outcome=outcome.kind.value,
            reason=change.reason,
            final=counted.code is not None,
            retry_in=round(max(change.hold_seconds, change.backoff_seconds), 1),
        )
