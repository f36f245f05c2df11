"""Two lanes of claiming: what came singly goes first, and leaves an eighth of each claim to what came by the thousand.

So thousands do not hold up a single task, and single ones that never end do not hold up the thousands.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import floor
from typing import Any

from runtime import clock

BULK_SHARE = 1 / 8
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""From when on to look at what is not to be claimed."""


class Floor:
    """From where on a claim looks: what was due before has been claimed.

    While an old snapshot lives (a dump, a forgotten transaction) the index keeps an entry for every claim since then,
    and a claim from the beginning would read them all. A task may become due below the floor all the same: its commit
    came late, somebody held its row, the clock was put back. So a claim begins a little below, and now and then it
    looks at everything.
    """

    def __init__(self, *, margin_seconds: float = 2.0, everything_seconds: float = 10.0) -> None:
        self._margin = timedelta(seconds=margin_seconds)
        self._everything_seconds = everything_seconds
        self._everything_at = 0.0
        self._reached: datetime | None = None

    def since(self) -> datetime | None:
        """Tell from which due time on to look now; None: look at everything."""
        if self._reached is None or clock.now() >= self._everything_at:
            self._everything_at = clock.now() + self._everything_seconds
            return None
        return self._reached - self._margin

    def move(self, reached: datetime, *, is_last: bool) -> None:
        """Note up to which due time tasks have been claimed; `is_last` if nothing was left behind them."""
        if is_last and self._reached is not None:
            reached = max(reached, self._reached)
        self._reached = reached

    def forget(self) -> None:
        """Look at everything until nothing is left behind."""
        self._reached = None


class Lane:
    """How far one lane has been claimed."""

    def __init__(self, margin_seconds: float) -> None:
        self.floor = Floor(margin_seconds=margin_seconds)
        # Where clients have names: the last who had a turn.
        self.last = ""


class Lanes:
    """What to remember from one claim to the next."""

    def __init__(self, *, margin_seconds: float = 2.0) -> None:
        self.single, self.bulk = Lane(margin_seconds), Lane(margin_seconds)
        # What a claim for less than eight could not leave to the bulk; less than one task.
        self._owed = 0.0

    def ask(self, limit: int, *, only_single: bool) -> tuple[datetime | None, datetime | None, int]:
        """Tell from when on to look at single ones and at the bulk, and how many of `limit` are left to the latter."""
        if only_single:
            return self.single.floor.since(), NEVER, 0
        self._owed += limit * BULK_SHARE
        share = floor(self._owed)
        self._owed -= share
        return self.single.floor.since(), self.bulk.floor.since(), share


def by_lane(rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Tell the single ones from the bulk."""
    return [row for row in rows if not row["bulk"]], [row for row in rows if row["bulk"]]
