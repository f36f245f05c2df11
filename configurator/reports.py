"""The outcomes on their way to the broker, batched."""

import asyncio
import math
from collections.abc import Callable, Sequence

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


class Reports:
    """Publishes outcomes under `routing_key`; `on_end` hears of each job whose outcome the broker has safe."""

    def __init__(self, session: Session, routing_key: str, on_end: Callable[[Job], None]) -> None:
        self._session = session
        self._routing_key = routing_key
        self._on_end = on_end
        self._batcher = Batcher("report", self._publish, max_batch=BATCH, max_waiting=math.inf, timeout=math.inf)

    async def report(self, job: Job, outcome: Outcome) -> None:
        """Publish the outcome until the broker has it safe, and only then acknowledge."""
        while await self._batcher.submit((job, outcome)) is not Publication.CONFIRMED:
            await asyncio.sleep(REPUBLISH_SECONDS)
        metrics.OUTCOMES.labels(outcome.kind.value).inc()

    async def _publish(self, reports: Sequence[tuple[Job, Outcome]]) -> list[Publication]:
        channel = await self._session.channel()
        await channel.unblocked()  # A broker short of memory or disk keeps every copy that it is sent.
        letters = [Letter(outcome.message_id, outcome.encode()) for _, outcome in reports]
        publications = await channel.publish(self._routing_key, letters)
        ended = [
            job
            for (job, _), publication in zip(reports, publications, strict=True)
            if publication is Publication.CONFIRMED
        ]
        for job in ended:
            self._on_end(job)
        acknowledge(delivery for job in ended for delivery in job.deliveries)
        return publications
