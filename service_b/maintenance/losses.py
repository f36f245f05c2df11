"""Reporting calls whose outcome does not come: the process that made them is gone."""

import asyncpg
import structlog

from messaging.frames import Letter
from messaging.messages import Outcome, OutcomeKind
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime import clock
from service_b import metrics
from service_b.tasks import overdue
from service_b.tasks.clock import Clock
from service_b.tasks.overdue import Call

log = structlog.stdlib.get_logger(__name__)

BATCH = 1000
IDLE_SHARE = 4
"""The next look is so many times as long away as this one took: an old snapshot makes it slow."""


async def report(session: Session, pool: asyncpg.Pool, broker: BrokerSettings, internal: Clock) -> float:
    """Report the calls that are overdue, behind all outcomes that came in time; waits for the broker.

    Each is reported once, as long as its report may wait in the queue while the results process is away. Returns how
    many seconds to pause, at least.
    """
    channel = await session.channel()
    if (now := internal.now()) is None:
        return 0
    started = clock.now()
    lost = await overdue.take_lost(pool, now, BATCH)
    pause = IDLE_SHARE * (clock.now() - started)
    if any(call.told for call in lost) and await channel.ready_messages(broker.configured_queue) != 0:
        lost = [call for call in lost if not call.told]
    if not lost:
        return pause
    publications = await channel.publish(broker.configured_key, [_write(call) for call in lost])
    published = zip(lost, publications, strict=True)
    if untold := [call for call, publication in published if publication is not Publication.CONFIRMED]:
        await overdue.put_back(pool, untold)
    metrics.LOST_CALLS.inc(len(lost) - len(untold))
    for call in lost:
        log.warning("task.lost", task_id=str(call.id), attempt=call.attempt)
    return pause


def _write(call: Call) -> Letter:
    outcome = Outcome(
        task_id=call.id, attempt=call.attempt, lease=call.lease, kind=OutcomeKind.LOST, reason="no outcome in time"
    )
    return Letter(f"{outcome.message_id}:lost", outcome.encode())
