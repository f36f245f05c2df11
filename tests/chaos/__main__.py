"""`python -m tests.chaos`: torture the system, and judge."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console

from tests.chaos import plan
from tests.chaos.nemeses import NEMESES
from tests.chaos.report import Report
from tests.chaos.rig import Rig
from tests.chaos.scenario import Run, perform
from tests.system.spawning import LOCAL

RATE = 250.0

console = Console(width=190, soft_wrap=True)


def run_seed(seed: int, chosen: list[str], rate: float, folder: Path) -> Run:
    """Run one seed in a folder of its own."""
    windows = plan.draw(seed, chosen)
    console.print(f"[bold]seed {seed}[/] in {folder}: " + ", ".join(" + ".join(w.nemeses) for w in windows))
    rig = Rig(folder, plan.links(windows))
    return uvloop.run(perform(rig, seed, windows, rate=rate, tell=lambda line: console.print(f"  {line}")))


def run_many(minutes: float, first: int, chosen: list[str], rate: float, folder: Path) -> Report:
    """Run seed after seed until the time is over."""
    report = Report()
    until = time.monotonic() + minutes * 60
    seed = first
    while time.monotonic() < until:
        run = run_seed(seed, chosen, rate, folder / str(seed))
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
        seed += 1
    return report


def main() -> int:
    """Read the arguments; 1 when something promised was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="seed after seed for some minutes")
    run.add_argument("--minutes", type=float, default=30)
    run.add_argument("--seed", type=int)
    one = commands.add_parser("seed", help="one seed again, alone")
    one.add_argument("number", type=int)
    for command in (run, one):
        command.add_argument("--nemesis", default="", help="only these, with commas: " + ", ".join(NEMESES))
        command.add_argument("--rate", type=float, default=RATE, help="submissions a second")
        command.add_argument("--report", type=Path, default=LOCAL / "chaos.json")
    given = parser.parse_args()
    chosen = [name.strip() for name in given.nemesis.split(",") if name.strip()]
    if unknown := set(chosen) - set(NEMESES):
        parser.error(f"no such nemesis: {', '.join(sorted(unknown))}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o755)
    if given.command == "run":
        first = given.seed if given.seed is not None else random.randrange(1000) * 100
        report = run_many(given.minutes, first, chosen, given.rate, folder)
    else:
        report = Report()
        report.add(run_seed(given.number, chosen, given.rate, folder / str(given.number)))
    report.save(given.report)
    report.print(console)
    if report.clean:
        shutil.rmtree(folder)
    else:
        console.print(f"histories and logs of the failing seeds: {folder}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
