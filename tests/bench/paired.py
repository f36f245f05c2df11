"""The whole path, and accepting, of this tree and of a former commit, in turns: what does a task cost, what did it?"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.report import Report
from tests.bench.stage import Stage
from tests.system.spawning import ROOT, base_environment


def measure(stage: Stage, report: Report) -> None:
    """Measure both, if a former commit is named; each has servers and processes of its own, idle out of its turn."""
    sizes = stage.sizes
    if not sizes.former:
        return
    with _tree(sizes.former) as former, _side(stage, ROOT, "now") as now, _side(stage, former, "former") as before:
        sides = {"now": now, "former": before}
        for kind in ("path", "accept"):
            for side in sides.values():
                _take_turn(side, kind, sizes.tasks // 4, "WARM")
            for turn in range(sizes.rounds):
                for name, side in sides.items():
                    costs = _take_turn(side, kind, sizes.tasks // 2, f"TURN{turn}X")
                    report.add(f"paired.{kind}.{name}.rate", costs.pop("rate"), "tasks/s")
                    report.add(f"paired.{kind}.{name}.total", sum(costs.values()), "µs/task")
                    for process, cost in costs.items():
                        report.add(f"paired.{kind}.{name}.{process}", cost, "µs/task")


@contextmanager
def _tree(commit: str) -> Iterator[Path]:
    """A commit's files, in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="former-") as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            raise RuntimeError(archive.stderr.decode())
        subprocess.run(["tar", "-x"], input=archive.stdout, cwd=folder, check=True)
        yield Path(folder)


@contextmanager
def _side(stage: Stage, tree: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    log_file = stage.folder / "logs" / f"turns.{name}.log"
    log_file.parent.mkdir(exist_ok=True)
    with log_file.open("w") as log:
        process = subprocess.Popen(
            # -P: this folder's modules must not stand before the libraries.
            [sys.executable, "-P", str(Path(__file__).with_name("turns.py"))],
            cwd=tree,
            env=base_environment() | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
        )
    try:
        yield process
        assert process.stdin
        process.stdin.close()
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def _take_turn(side: subprocess.Popen[str], kind: str, count: int, prefix: str) -> dict[str, float]:
    assert side.stdin
    assert side.stdout
    side.stdin.write(f"{kind} {count} {prefix}{os.linesep}")
    line = side.stdout.readline()
    if not line:
        raise RuntimeError(f"one side of the paired run ended with code {side.wait(60)}")
    costs: dict[str, float] = json.loads(line)
    return costs
