"""Noticing that service A answers nobody, though it can be reached."""

from datetime import UTC, datetime

import structlog

from configurator import metrics
from configurator.answers import ANSWERS
from messaging.messages import OutcomeKind

log = structlog.stdlib.get_logger(__name__)

SILENT_ENDS = 20
"""So many calls in a row that end without an answer of A's own are no accident of one device."""


class Silence:
    """Counts the calls in a row that ended without an answer of A's own."""

    def __init__(self) -> None:
        self._ends = 0
        self._since = datetime.now(UTC)

    @property
    def unready(self) -> str | None:
        """What a readiness check says: None while A answers somebody."""
        if self._ends < SILENT_ENDS:
            return None
        return f"service A answers nobody since {self._since.isoformat(timespec='seconds')}"

    def note(self, kind: OutcomeKind) -> None:
        """Take the end of a call into account."""
        if kind in ANSWERS.values():
            if self._ends >= SILENT_ENDS:
                log.info("service_a.answers", silent_ends=self._ends)
            self._ends = 0
        else:
            if not self._ends:
                self._since = datetime.now(UTC)
            self._ends += 1
            if self._ends == SILENT_ENDS:
                log.warning("service_a.silent", since=self._since.isoformat(timespec="seconds"))
        metrics.SILENT_ENDS.set(self._ends)
