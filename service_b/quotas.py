"""How many unfinished tasks the tokens of one name may have."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from runtime import clock
from service_b.tasks import counts
from service_b.tasks.inserts import NewTask

BATCH = 100
COUNTED_SECONDS = 1.0
"""A count holds for so long: of what other processes store and of what ends meanwhile it knows nothing."""


@dataclass(slots=True)
class _Count:
    # How many more tasks may be stored before they are counted again, and until when.
    left: int
    until: float
    # There was no room at all.
    is_full: bool


class Quotas:
    """Counts a name's tasks now and then, and lets so many pass until the next time that they stay within `most`.

    The count reads all of them. So far from the limit a sixteenth of what is free may pass at once; near it a batch,
    and other processes, which do the same, may store as much beyond it.
    """

    def __init__(self, pool: asyncpg.Pool, most: int, *, counted_seconds: float = COUNTED_SECONDS) -> None:
        self._pool = pool
        self._most = most
        self._counted_seconds = counted_seconds
        self._counts: dict[str, _Count] = {}

    async def admit(self, batch: Sequence[NewTask]) -> list[bool]:
        """Tell of each task whether it may be stored; one without a name always may."""
        for name, wanted in Counter(task.submitted_by for task in batch if task.submitted_by).items():
            count = self._counts.get(name)
            if count is None or clock.now() >= count.until or (count.left < wanted and not count.is_full):
                free = self._most - await counts.count_of(self._pool, name, self._most)
                left = min(free, max(BATCH, free // 16))
                self._counts[name] = _Count(left, clock.now() + self._counted_seconds, free <= 0)
        return [task.submitted_by is None or self._take(task.submitted_by) for task in batch]

    def _take(self, name: str) -> bool:
        count = self._counts[name]
        if count.left <= 0:
            return False
        count.left -= 1
        return True
