"""The outcomes on their way to the broker, batched."""

import asyncio
import math
from collections.abc import Sequence

from configurator import metrics
from configurator.jobs import Job
from messaging.deliveries import acknowledge
from messaging.frames import Letter
from messaging.messages import Outcome
from messaging.publishing import Publication
from messaging.session import Session
from runtime.batching import Batcher

REPUBLISH_SECONDS = 0.5
BATCH = 500
GATHER_SECONDS = 0.01
"""So long a batch waits for more; next to a call of a minute nobody notices."""


class Reports:
    """Publishes outcomes under `routing_key`."""

    def __init__(self, session: Session, routing_key: str) -> None:
        self._session = session
        self._routing_key = routing_key
        self._batcher = Batcher(
            "report",
            self._publish,
            max_batch=BATCH,
            max_waiting=math.inf,
            timeout=math.inf,
            gather_seconds=GATHER_SECONDS,
        )

    async def report(self, job: Job, outcome: Outcome) -> None:
        """Publish the outcome until the broker has it safe, and only then acknowledge."""
        while await self._batcher.submit((job, outcome)) is not Publication.CONFIRMED:
            await asyncio.sleep(REPUBLISH_SECONDS)
        metrics.OUTCOMES_OF[outcome.kind].inc()

    async def _publish(self, reports: Sequence[tuple[Job, Outcome]]) -> list[Publication]:
        channel = await self._session.channel()
        await channel.unblocked()  # A broker short of memory or disk keeps every copy that it is sent.
        letters = [Letter(outcome.message_id, outcome.encode()) for _, outcome in reports]
        publications = await channel.publish(self._routing_key, letters)
        acknowledge(
            job.delivery
            for (job, _), publication in zip(reports, publications, strict=True)
            if publication is Publication.CONFIRMED
        )
        return publications
