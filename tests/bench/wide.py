"""A configurator of many slots beside one of a tenth: who has room for more must not pay more for each task."""

from contextlib import ExitStack

from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Stage


def measure(stage: Stage, report: Report) -> None:
    """Send tasks through both in turns, past a service A of no delay."""
    sizes = stage.sizes
    with ExitStack() as stack:
        systems = {}
        for name, slots in (("few", sizes.slots // 10), ("many", sizes.slots)):
            room = stack.enter_context(stage.room(f"wide_{name}"))
            systems[name] = room, room.start_all(concurrency=slots)
            send_through(*systems[name], sizes.tasks // 4, "WARM")
            report.add(f"wide.{name}.slots", slots, "")
        for turn in range(sizes.rounds):
            for name, (room, processes) in systems.items():
                passage = send_through(room, processes, sizes.tasks // 2, f"WIDE{turn}X")
                report.add(f"wide.{name}.rate", passage.rate, "tasks/s")
                report.add(f"wide.{name}.configurator", passage.costs["configurator"], "µs/task")
