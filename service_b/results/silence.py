"""What the ends of calls say of service A, gathered until it is written down."""

import asyncpg
import structlog

from messaging.messages import Outcome, OutcomeKind
from runtime import clock
from service_b.database import STORAGE_ERRORS
from service_b.results.decision import ANSWERED
from service_b.tasks import sparing

log = structlog.stdlib.get_logger(__name__)

NOTE_SECONDS = 1.0
"""That it answers need not be said more often: the row is one for all."""


class Silence:
    """Notes whether service A answers, at once where it did not, else at most once in `note_seconds`."""

    def __init__(self, pool: asyncpg.Pool, *, note_seconds: float = NOTE_SECONDS) -> None:
        self._pool = pool
        self._note_seconds = note_seconds
        self._noted_at = -note_seconds
        # What is not written down yet: whether somebody was answered, and how many were not since.
        self._answered = False
        self._silent = 0

    def add(self, outcome: Outcome) -> None:
        """Take an end into account. A call that was lost says nothing, nor does one that was handed back."""
        if outcome.kind in ANSWERED:
            self._answered, self._silent = True, 0
        elif outcome.kind in (OutcomeKind.UNKNOWN, OutcomeKind.UNAVAILABLE) and outcome.retry_after_seconds != 0:
            self._silent += 1

    async def note(self) -> None:
        """Write down what has come together; what cannot be written is kept for the next time."""
        if not self._silent and not (self._answered and clock.now() >= self._noted_at + self._note_seconds):
            return
        try:
            noted = await sparing.note(self._pool, answered=self._answered, silent_ends=self._silent)
        except STORAGE_ERRORS as error:
            log.warning("silence.storage_unavailable", error=repr(error))
            return
        if noted:
            self._answered, self._silent, self._noted_at = False, 0, clock.now()
