"""`python -m tests.bench [--quick] [--only floor,accept,...] [--json FILE]`: the benchmark, in one table."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tests.bench import (
    accept,
    backlog,
    bulk,
    floor,
    growth,
    guards,
    hour,
    idle,
    lists,
    locked,
    paired,
    path,
    plans,
    scale,
    scrapers,
    slots,
    status,
    waits,
    wide,
)
from tests.bench.report import Report
from tests.bench.stage import QUICK, Sizes, Stage
from tests.system.spawning import LOCAL

IN_ROUNDS = {"floor": floor.measure, "accept": accept.measure, "status": status.measure, "path": path.measure}
"""Measured one after the other, several times: what is set against the floor is set against that of its own round."""
REPEATING = {
    "idle": idle.measure,
    "slots": slots.measure,
    "wide": wide.measure,
    "backlog": backlog.measure,
    "bulk": bulk.measure,
    "growth": growth.measure,
    "lists": lists.measure,
    "waits": waits.measure,
    "hour": hour.measure,
    "plans": plans.measure,
    "locked": locked.measure,
    "scrapers": scrapers.measure,
    "scale": scale.measure,
    "guards": guards.measure,
    "paired": paired.measure,
}
"""These repeat their figures by themselves."""
SECTIONS = IN_ROUNDS | REPEATING


def main() -> int:
    """Run the sections; 1 if something that must be shown is missed (never with `--quick`, which shows nothing)."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every part work?")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas: %(default)s")
    parser.add_argument("--rounds", type=int, help="how often what takes seconds is measured")
    parser.add_argument("--repeats", type=int, help="how often what takes minutes is measured")
    parser.add_argument(
        "--hours", type=float, help="how long an hour of load takes, otherwise little more than a minute"
    )
    parser.add_argument("--former", default="", metavar="COMMIT", help="compare the path's costs with this commit's")
    parser.add_argument("--json", type=Path, default=LOCAL / "bench" / "latest.json", help="where to save it")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    sizes = QUICK if arguments.quick else Sizes()
    sizes = replace(
        sizes,
        rounds=arguments.rounds or sizes.rounds,
        repeats=arguments.repeats or sizes.repeats,
        hour_seconds=3600 * arguments.hours if arguments.hours else sizes.hour_seconds,
        former=arguments.former,
    )
    console, report, began = Console(), Report(), time.monotonic()
    report.add("machine.cores", len(os.sched_getaffinity(0)), "")
    report.add("machine.load before", os.getloadavg()[0], "")
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        stage = Stage(folder, sizes)
        with stage.postgres, stage.rabbitmq:
            for name, measure in [*IN_ROUNDS.items()] * sizes.rounds + [*REPEATING.items()]:
                if name in wanted:
                    console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {name}")
                    measure(stage, report)
    except (RuntimeError, TimeoutError) as error:
        console.print(f"[red]{error}[/red]\nThe logs are in {folder / 'logs'}")
        return 1
    shutil.rmtree(folder)
    report.print(console)
    report.save(arguments.json)
    console.print(f"{time.monotonic() - began:.0f} s; saved to {arguments.json}")
    return 0 if arguments.quick or all(good for *_, good in report.judged()) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
