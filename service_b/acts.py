"""What clients do to tasks that are there: taking one back, and trying one again."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import structlog

from messaging.sealing.suite import FORM
from runtime import clock
from service_b import metrics
from service_b.storage import TIMEOUT_SECONDS, Storage, StorageUnavailableError
from service_b.tasks import cancels, retries
from service_b.tasks.cancels import Answer
from service_b.tasks.clock import Clock
from service_b.tasks.inserts import Wishes
from service_b.tasks.retries import Kept

__all__ = ["Acts", "Again", "Answer"]

log = structlog.stdlib.get_logger(__name__)

HELD_SECONDS = 0.1
"""After that long a task is asked for again whose row somebody else held."""


@dataclass(frozen=True, slots=True)
class Again:
    """What another try of a task is made of: parameters (JSON text), and the wishes that go with them."""

    parameters: str = field(repr=False)
    wishes: Wishes


class Acts:
    """Cancels tasks by the batch, and finds what is kept for another try."""

    def __init__(self, pool: asyncpg.Pool, internal: Clock, *, patience_seconds: float = TIMEOUT_SECONDS) -> None:
        self._pool = pool
        self._internal = internal
        self._patience_seconds = patience_seconds
        self._cancels: Storage[tuple[UUID, str | None], Answer] = Storage("cancel", self._cancel)
        self._kept: Storage[UUID, Kept | None] = Storage("kept", lambda ids: retries.find_kept(pool, ids))

    async def cancel(self, task_id: UUID, by: str | None = None) -> Answer:
        """Cancel a task, in somebody's name; it may be asked again.

        Raises what `Storage.ask` raises, also if somebody else holds the task's row for too long: then nothing is done.
        """
        until = clock.now() + self._patience_seconds
        while (answer := await self._cancels.ask((task_id, by), task_id)) is Answer.HELD:
            if clock.now() >= until:
                log.warning("cancel.held", task_id=str(task_id))
                raise StorageUnavailableError
            await asyncio.sleep(HELD_SECONDS)
        return answer

    async def find_again(self, task_id: UUID, external_id: str | None) -> Again | None:
        """Find what another try of a finished task is made of; None where its parameters are not kept.

        What is sealed is handed on as it is: nobody here can open it. Raises what `Storage.ask` raises.
        """
        kept = await self._kept.ask(task_id, task_id)
        if kept is None:
            return None
        sealed_for = kept.sealed_for or (task_id if FORM.fullmatch(kept.parameters) else None)
        return Again(kept.parameters, Wishes(external_id, retry_of=task_id, sealed_for=sealed_for))

    async def close(self) -> None:
        """Wait for the last batches."""
        await self._cancels.close()
        await self._kept.close()

    async def _cancel(self, batch: Sequence[tuple[UUID, str | None]]) -> Sequence[Answer]:
        async with self._pool.acquire() as connection:
            answers = await cancels.cancel(connection, batch, self._internal.at_least())
        ended = answers.count(Answer.CANCELLED)
        metrics.CANCELLED.inc(ended)
        metrics.FINISHED.labels(500).inc(ended)
        return answers
