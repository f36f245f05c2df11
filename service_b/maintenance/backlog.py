"""The backlog's gauges: how much is unfinished, measured by one process, with the age of the measurement."""

from collections.abc import Callable, Iterator, Mapping

import structlog
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from runtime import clock
from service_b.database import STORAGE_ERRORS, Queries
from service_b.tasks import counts

log = structlog.stdlib.get_logger(__name__)

PERIOD_SECONDS = 15.0
IDLE_SHARE = 20
"""A pause is so many times longer than the count before it: at most a twentieth of one connection's time."""
STALE_PERIODS = 4
"""So many pauses without a measurement, and the last one is shown no more."""


class BacklogMeter(Collector):
    """Counts the unfinished tasks while `leads` says that it is this process's turn, and shows what it counted.

    A process that does not lead shows nothing, so that a sum over all processes counts each task once; nor does one
    that could not measure for long: an old number looks like a good one. Until then the age tells. Where tasks are
    sealed it also counts for which keys: one that no task needs may be thrown away.
    """

    def __init__(
        self, pool: Queries, leads: Callable[[], bool], *, seals: bool = False, period_seconds: float = PERIOD_SECONDS
    ) -> None:
        self._pool = pool
        self._leads = leads
        self._seals = seals
        self._period_seconds = period_seconds
        self._pause = period_seconds
        self._latest: tuple[counts.Backlog, Mapping[str, int], float] | None = None

    async def measure(self) -> float:
        """Count once; what cannot be counted just now leaves the last numbers. Returns how long to pause."""
        started = clock.now()
        try:
            backlog = await counts.count(self._pool)
            keys = await counts.count_keys(self._pool) if self._seals else {}
        except STORAGE_ERRORS as error:
            log.warning("backlog.storage_unavailable", error=repr(error))
        else:
            # It is as old as its snapshot, which was taken when the count began.
            self._latest = backlog, keys, started
        self._pause = max(self._period_seconds, IDLE_SHARE * (clock.now() - started))
        return self._pause

    @override
    def collect(self) -> Iterator[Metric]:
        """Give what was measured, at each scrape."""
        if self._latest is None or not self._leads():
            return
        backlog, keys, measured_at = self._latest
        age = clock.now() - measured_at
        if age > STALE_PERIODS * self._pause:
            return
        unfinished = GaugeMetricFamily("tasks_unfinished", "Unfinished tasks, by state", labels=["state"])
        for state in ("scheduled", "waiting", "due", "dispatched", "running"):
            unfinished.add_metric([state], getattr(backlog, state))
        yield unfinished
        if self._seals:
            sealed = GaugeMetricFamily("tasks_sealed", "Unfinished tasks, by the key that opens them", labels=["key"])
            for key, count in keys.items():
                sealed.add_metric([key], count)
            yield sealed
        for name, seconds, text in (
            ("unfinished", backlog.oldest_seconds, "Age of the oldest unfinished task"),
            ("dispatched", backlog.dispatched_seconds, "How long ago the oldest message was written that nobody began"),
            ("running", backlog.running_seconds, "How long ago the oldest call began that has no outcome"),
        ):
            # The clock of the database may have been set back since then.
            yield GaugeMetricFamily(f"tasks_oldest_{name}_seconds", text, value=max(0.0, seconds or 0.0))
        yield GaugeMetricFamily("tasks_backlog_age_seconds", "How long ago the backlog was measured", value=age)
