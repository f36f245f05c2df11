"""Far more tasks are due than the slots can take: how much lies in the queue meanwhile, and are the slots busy?

The calls begin and end together, so that the queue meets the worst: everything is taken at once, and then nothing.
"""

import statistics
import time
from contextlib import ExitStack

from tests.bench.report import Report
from tests.bench.stage import Room, Stage, scrape
from tests.system.processes import Process

SAMPLE_SECONDS = 0.5
FILL_SECONDS = 30.0
FULL = 0.97
"""As a share of the slots: from then on it counts how many are busy."""
ROUNDS_OF_CALLS = 2


class Backlog:
    """One system with so many due tasks, and what was seen of it."""

    def __init__(self, room: Room, due: int, slots: int) -> None:
        self._room = room
        self._due = due
        self._slots = slots
        self._processes: list[Process] = []
        self._ready: list[int] = []
        self._busy: list[float] = []
        """Of the slots, since they were all taken for the first time."""

    def start(self, delay_seconds: float) -> None:
        """Start the processes."""
        self._processes = self._room.start_all(delay_seconds=delay_seconds, concurrency=self._slots)

    def fill(self) -> None:
        """Make the tasks, all at once."""
        self._room.sql(
            """
            INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at,
                              active, due_at)
            SELECT uuidv7(), 'DUE' || lpad(number::text, 8, '0'), 14,
                   '{"username":"admin","password":"admin","vlan":534,"interfaces":[1,2,3,4]}', 89,
                   now() + interval '1 day', true, now()
            FROM generate_series(1, $1::integer) AS number
            """,
            self._due,
        )

    def look(self) -> bool:
        """Take a sample; tell whether all slots have been busy yet."""
        self._ready.append(self._room.ready_messages())
        configurator = next(process for process in self._processes if process.module == "configurator")
        calls = scrape(configurator, "service_a_calls_in_flight")
        if self._busy or calls >= FULL * self._slots:
            self._busy.append(calls / self._slots)
        return bool(self._busy)

    def tell(self, report: Report, calls_per_second: float) -> None:
        """Report what was seen."""
        name = f"backlog.{self._due}"
        report.add(f"{name}.ready, most", max(self._ready), "messages")
        report.add(f"{name}.ready, median", statistics.median(self._ready), "messages")
        report.add(f"{name}.ready, median, of work", statistics.median(self._ready) / calls_per_second, "s")
        report.add(f"{name}.occupancy", statistics.mean(self._busy), "")


def measure(stage: Stage, report: Report) -> None:
    """Watch a backlog and one of ten times as many, side by side: they wait most of their time."""
    sizes = stage.sizes
    with ExitStack() as stack:
        backlogs = [
            Backlog(stack.enter_context(stage.room(f"backlog_{due}")), due, sizes.backlog_slots)
            for due in sizes.backlogs
        ]
        for backlog in backlogs:
            backlog.start(sizes.delay_seconds)
        for backlog in backlogs:
            backlog.fill()
        deadline = time.monotonic() + FILL_SECONDS
        until = None
        while until is None or time.monotonic() < until:
            full = [backlog.look() for backlog in backlogs]
            if all(full) and until is None:
                until = time.monotonic() + ROUNDS_OF_CALLS * sizes.delay_seconds
            if until is None and time.monotonic() > deadline:
                raise TimeoutError(f"the slots are not all busy after {FILL_SECONDS} s")
            time.sleep(SAMPLE_SECONDS)
        for backlog in backlogs:
            backlog.tell(report, sizes.backlog_slots / sizes.delay_seconds)
