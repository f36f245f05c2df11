"""`python -m tests.chaos`: torture the system, and judge."""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console

from tests.chaos import mutants, plan
from tests.chaos.checker import PATIENCE_SECONDS
from tests.chaos.clusters import CLUSTER_NEMESES, SCENARIOS
from tests.chaos.nemeses import NEMESES
from tests.chaos.report import Report
from tests.chaos.rig import Rig, Shape
from tests.chaos.scenario import DRAIN_SECONDS, Run, perform
from tests.system.spawning import LOCAL

RATE = 300.0
DEADLINE_SECONDS = 1800
"""Longer than a run, and shorter than a step of the clock."""

console = Console(width=190, soft_wrap=True)


def run_seed(seed: int, given: argparse.Namespace, folder: Path) -> Run:
    """Run one seed in a folder of its own."""
    windows = plan.draw(seed, given.nemesis)
    if given.seconds:
        windows = [replace(window, seconds=given.seconds) for window in windows]
    console.print(f"[bold]seed {seed}[/] in {folder}: " + ", ".join(" + ".join(w.nemeses) for w in windows))
    shape = Shape(given.replicas, given.concurrency, given.attempts, given.deadline)
    performance = perform(
        Rig(folder, plan.needs(windows), shape),
        seed,
        windows,
        rate=given.rate,
        once=given.once,
        patience=given.patience,
        drain_seconds=given.drain,
        tell=lambda line: console.print(f"  {line}"),
    )
    return uvloop.run(performance)


def run_cluster(name: str, seed: int, given: argparse.Namespace, folder: Path) -> Run:
    """Run a scenario of clusters."""
    rig_class, names = SCENARIOS[name]
    rng = random.Random(seed)
    windows = [plan.Window((nemesis,), rng.uniform(*CLUSTER_NEMESES[nemesis].seconds)) for nemesis in names]
    console.print(f"[bold]{name}[/], seed {seed}, in {folder}")
    performance = perform(
        rig_class(folder),
        seed,
        windows,
        rate=given.rate,
        nemeses=CLUSTER_NEMESES,
        drain_seconds=given.drain,
        tell=lambda line: console.print(f"  {line}"),
    )
    return uvloop.run(performance)


def run_many(first: int, given: argparse.Namespace, folder: Path) -> Report:
    """Run the clusters, then seed after seed until the time is over."""
    report = Report()
    until = time.monotonic() + given.minutes * 60
    for name in () if given.nemesis else SCENARIOS:
        _note(run_cluster(name, first, given, folder / name.replace(" ", "-")), report, folder)
    for seed in itertools.count(first):
        if time.monotonic() > until:
            break
        _note(run_seed(seed, given, folder / str(seed)), report, folder)
    return report


def _note(run: Run, report: Report, folder: Path) -> None:
    report.add(run)
    report.save(folder / "report.json")
    verdict = run.verdict
    console.print(
        f"  {verdict.accepted:,} accepted, {len(verdict.violations)} violations, drained "
        f"{'in' if run.drained else 'NOT in'} {run.drain_seconds:.0f} s, {run.seconds:.0f} s in all; "
        f"{report.total.accepted:,} accepted so far"
    )
    if not verdict.violations:
        shutil.rmtree(run.folder)


def nemeses(text: str) -> list[str]:
    """Read a list of nemeses."""
    chosen = [names.strip() for names in text.split(",") if names.strip()]
    for name in (name.strip() for names in chosen for name in names.split("+")):
        if name not in NEMESES:
            raise argparse.ArgumentTypeError(f"no nemesis is called {name!r}; there are {', '.join(NEMESES)}")
    return chosen


def main() -> int:
    """Read the arguments; 1 when something promised was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="seed after seed for some minutes")
    run.add_argument("--minutes", type=float, default=30)
    run.add_argument("--seed", type=int)
    one = commands.add_parser("seed", help="one seed again, alone")
    one.add_argument("number", type=int)
    sabotaged = commands.add_parser("mutants", help="sabotage the code, and see whether it is noticed")
    sabotaged.add_argument("names", nargs="*")
    sabotaged.add_argument("--no-control", action="store_true", help="do not run the scenarios on the untouched code")
    sabotaged.add_argument("--jobs", type=int, default=mutants.JOBS, help="so many at a time")
    clustered = commands.add_parser("cluster", help="a cluster's node dies under load")
    clustered.add_argument("name", choices=list(SCENARIOS))
    clustered.add_argument("--seed", type=int, default=1, dest="number")
    for command in (run, one, clustered):
        command.add_argument(
            "--nemesis", type=nemeses, default=[], help="only these, with commas; + between those that work at once"
        )
        command.add_argument("--rate", type=float, default=RATE, help="submissions a second")
        command.add_argument("--seconds", type=float, help="how long each harm lasts")
        command.add_argument("--drain", type=float, default=DRAIN_SECONDS, help="seconds for the last tasks to end")
        command.add_argument("--patience", type=float, default=PATIENCE_SECONDS, help="from a fault to a task's end")
        command.add_argument("--once", action="store_true", help="these faults excuse no call after A's answer")
        command.add_argument("--replicas", type=int, default=2)
        command.add_argument("--attempts", type=int, default=10)
        command.add_argument("--concurrency", type=int, default=150)
        command.add_argument("--deadline", type=int, default=DEADLINE_SECONDS)
        command.add_argument("--report", type=Path, default=LOCAL / "chaos.json", help="as JSON, or, *.md, to be read")
    given = parser.parse_args()
    if given.command == "mutants":
        return 0 if mutants.run_all(given.names, console, not given.no_control, given.jobs) else 1
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o755)
    if given.command == "run":
        first = given.seed if given.seed is not None else random.randrange(1000) * plan.rounds()
        report = run_many(first, given, folder)
        if unused := (plan.possible() | CLUSTER_NEMESES.keys()) - report.rows.keys():
            console.print(f"not tried alone: {', '.join(sorted(unused))}")
    elif given.command == "cluster":
        report = Report()
        report.add(run_cluster(given.name, given.number, given, folder / "cluster"))
    else:
        report = Report()
        report.add(run_seed(given.number, given, folder / str(given.number)))
    report.save(given.report)
    report.print(console)
    if report.clean:
        shutil.rmtree(folder)
    else:
        console.print(f"histories and logs of the failing seeds: {folder}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
