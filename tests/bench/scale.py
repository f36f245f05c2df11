"""More of each process, and what a fleet would need by the figures of this run."""

import math

from tests.bench.aims import Figures
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Stage

FLEET_RATE = 1000
FLEET_DELAY_SECONDS = 60
SLOTS_EACH = 10_000
BUSY = 0.6
"""How much of a core a process may use on average."""
OURS = ("service_b", "service_b.results", "configurator")


def measure(stage: Stage, report: Report) -> None:
    """Measure the path with one and with two of each of our processes, and project."""
    for each in (1, 2):
        with stage.room(f"scale{each}") as room:
            processes = room.start_all(each=each)
            send_through(room, processes, stage.sizes.tasks // 4, "WARM")
            for repeat in range(stage.sizes.repeats):
                passage = send_through(room, processes, stage.sizes.tasks, f"SCALE{repeat}X")
                report.add(f"scale.{each} of each.rate", passage.rate, "tasks/s")
                report.add(f"scale.{each} of each.total", sum(passage.costs.values()), "µs/task")
    for name, (value, unit) in fleet(report.figures).items():
        report.add(f"scale.fleet.{name}", value, unit)


def fleet(figures: Figures) -> dict[str, tuple[float, str]]:
    """Project `FLEET_RATE` tasks a second on a service A of a minute; empty without the figures of path and slots."""
    if "path.total" not in figures or "slots.kib" not in figures:
        return {}
    slots = FLEET_RATE * FLEET_DELAY_SECONDS
    load = {name: FLEET_RATE * figures[f"path.{name}"] / 1e6 for name in (*OURS, "rabbitmq", "postgresql")}
    count = {name: math.ceil(load[name] / BUSY) for name in OURS}
    count["configurator"] = max(count["configurator"], math.ceil(slots / SLOTS_EACH))
    return {
        "rate": (FLEET_RATE, "tasks/s"),
        "slots": (slots, ""),
        **{name: (count[name], "processes") for name in OURS},
        **{f"{name} load": (load[name], "cores") for name in load},
        "configurators' memory": (
            (slots * figures["slots.kib"] + count["configurator"] * base_kib(figures)) / 1024**2,
            "GiB",
        ),
        "rabbitmq messages": (2 * FLEET_RATE, "/s"),
        **(
            {"postgresql, a day's rows": (86400 * FLEET_RATE * figures["growth.finished.row"] / 1024**3, "GiB")}
            if "growth.finished.row" in figures
            else {}
        ),
    }


def base_kib(figures: Figures) -> float:
    """The memory of a configurator without a call."""
    return 1024 * figures["slots.configurator"] - figures["slots.kib"] * figures["slots.slots"]
