"""The whole path under statistics of another time: PostgreSQL must choose the same plans whatever it believes.

Each table is analyzed once, in one state, and never again: what the path adds is news to the planner.
"""

from contextlib import ExitStack

from tests.bench.fills import fill_finished, fill_pending
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Stage

STATES = {"empty": None, "all pending": fill_pending, "all finished": fill_finished}


def measure(stage: Stage, report: Report) -> None:
    """Measure the path after ANALYZE of an empty table, of an all-pending and of an all-finished one, in turns."""
    with ExitStack() as stack:
        systems = {}
        for state, fill in STATES.items():
            room = stack.enter_context(stage.room(f"plans_{state.replace(' ', '_')}"))
            room.sql("ALTER TABLE task SET (autovacuum_enabled = off)")
            if fill:
                fill(room, stage.sizes.pending)
            room.sql("VACUUM (ANALYZE) task, finished")
            systems[state] = room, room.start_all()
            send_through(*systems[state], stage.sizes.tasks // 4, "WARM")
        for turn in range(stage.sizes.rounds):
            for state, (room, processes) in systems.items():
                passage = send_through(room, processes, stage.sizes.tasks // 2, f"PLANS{turn}X")
                report.add(f"plans.{state}.rate", passage.rate, "tasks/s")
                report.add(f"plans.{state}.postgresql", passage.costs["postgresql"], "µs/task")
