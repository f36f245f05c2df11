"""Reporting calls whose outcome does not come: the process that made them is gone."""

import asyncio
from collections.abc import Callable

import asyncpg
import structlog

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.messages import Outcome, OutcomeKind
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from service_b import metrics
from service_b.database import STORAGE_ERRORS
from service_b.tasks import overdue
from service_b.tasks.clock import Clock
from service_b.tasks.overdue import Call

log = structlog.stdlib.get_logger(__name__)

BATCH = 1000


class Losses:
    """Reports lost calls while `leads` says that it is this process's turn, behind all outcomes that came in time.

    A loop of its own: a broker that does not answer delays nothing else.
    """

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        broker: BrokerSettings,
        internal: Clock,
        leads: Callable[[], bool],
        *,
        round_seconds: float,
    ) -> None:
        self._session = session
        self._pool = pool
        self._broker = broker
        self._internal = internal
        self._leads = leads
        self._round_seconds = round_seconds

    async def run(self) -> None:
        """Report again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._round_seconds)
            channel = await self._session.channel()
            try:
                if self._leads():
                    await self.report(channel)
            except STORAGE_ERRORS as error:
                log.warning("losses.storage_unavailable", error=repr(error), retry_in=self._round_seconds)
            except Exception:
                log.exception("losses.bug", retry_in=self._round_seconds)

    async def report(self, channel: Channel) -> None:
        """Report the calls that are overdue, each once as long as its report may wait in the queue."""
        if (now := self._internal.now()) is None:
            return
        lost = await overdue.take_lost(self._pool, now, BATCH)
        if any(call.told for call in lost) and await channel.ready_messages(self._broker.configured_queue) != 0:
            lost = [call for call in lost if not call.told]
        if not lost:
            return
        publications = await channel.publish(self._broker.configured_key, [_write(call) for call in lost])
        published = zip(lost, publications, strict=True)
        if untold := [call for call, publication in published if publication is not Publication.CONFIRMED]:
            await overdue.put_back(self._pool, untold)
        metrics.LOST_CALLS.inc(len(lost) - len(untold))
        for call in lost:
            log.warning("task.lost", task_id=str(call.id), attempt=call.attempt)


def _write(call: Call) -> Letter:
    outcome = Outcome(
        task_id=call.id, attempt=call.attempt, lease=call.lease, kind=OutcomeKind.LOST, reason="no outcome in time"
    )
    return Letter(f"{outcome.message_id}:lost", outcome.encode())
