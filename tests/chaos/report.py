"""The table of faults: what was done, how often, and what it did."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import VIOLATIONS
from tests.chaos.history import read
from tests.chaos.scenario import Run, window_at

RECOVERY_GOAL_SECONDS = 15.0


@dataclass(slots=True)
class Row:
    """One nemesis over all runs."""

    runs: int = 0
    accepted: int = 0
    repeated: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    recovery: float = 0.0


class Report:
    """Gathers runs, prints the table and saves it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.total = Row()
        self.unknown = 0
        self.refused = 0
        self.stored = 0
        self.calls = 0
        self.reads = 0
        self.seeds: list[int] = []
        self.failed: dict[int, list[dict[str, Any]]] = {}
        self.slow: list[str] = []
        self.finished: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, run: Run) -> None:
        """Count a run in: what happened to a task belongs to the window in which it was accepted."""
        verdict = run.verdict
        self.seeds.append(run.seed)
        self.seconds += run.seconds
        self.finished.update(verdict.finished)
        self.errors.update(verdict.errors)
        self.unknown += verdict.unknown
        self.refused += verdict.refused
        self.stored += verdict.stored
        self.calls += verdict.calls
        self.reads += verdict.reads
        self.total.runs += 1
        for passed in run.passed:
            row = self._row(passed.name)
            row.runs += 1
            recovery = passed.recovery if passed.recovery is not None else float("inf")
            row.recovery = max(row.recovery, recovery)
            self.total.recovery = max(self.total.recovery, recovery)
            if recovery > RECOVERY_GOAL_SECONDS:
                self.slow.append(f"seed {run.seed}: {' + '.join(passed.nemeses)}: {recovery:.1f} s")
        calls: Counter[str] = Counter()
        for event in read(run.folder):
            if event["kind"] == "submitted" and event["status"] == 200:
                self._count(run, event["t"]).accepted += 1
                self.total.accepted += 1
            elif event["kind"] == "a.begin":
                calls[event["task"]] += 1
                if calls[event["task"]] > 1:
                    self._count(run, event["t"]).repeated += 1
                    self.total.repeated += 1
        for violation in verdict.violations:
            self._count(run, violation.at).violations[violation.kind] += 1
            self.total.violations[violation.kind] += 1
        if verdict.violations:
            self.failed[run.seed] = [
                {"kind": v.kind, "task": v.task, "detail": v.detail, "at": v.at} for v in verdict.violations[:50]
            ]

    @property
    def clean(self) -> bool:
        """Whether nothing that was promised was broken."""
        return not self.total.violations

    def print(self, console: Console) -> None:
        """Print the table, what ended in error and why, and how a failing seed is run again."""
        table = Table(title=f"chaos: {len(self.seeds)} runs, {self.seconds / 60:.1f} minutes")
        shown = ("lost", "doubled", "overlapping", "order", "going back")
        table.add_column("nemesis")
        for column in ("runs", "accepted", *shown, "other", "repeated calls", "worst recovery"):
            table.add_column(column, justify="right")
        for name, row in [*sorted(self.rows.items()), ("sum", self.total)]:
            if name == "sum":
                table.add_section()
            other = sum(count for kind, count in row.violations.items() if kind not in shown)
            counts = [row.runs, row.accepted, *(row.violations[kind] for kind in shown), other, row.repeated]
            table.add_row(name, *(f"{count:,}" for count in counts), f"{row.recovery:.1f} s")
        console.print(table)
        console.print(
            f"{self.stored:,} tasks stored, {self.unknown:,} submissions unknown, {self.refused:,} answered 503; "
            f"{self.calls:,} calls of A, {self.reads:,} reads; final codes {dict(self.finished)}"
        )
        console.print(f"ended in error because of: {dict(self.errors.most_common(12))}")
        for line in self.slow:
            console.print(f"[yellow]over {RECOVERY_GOAL_SECONDS:g} s to recover:[/] {line}")
        for seed, violations in self.failed.items():
            console.print(f"[red]seed {seed} failed[/]; again: python -m tests.chaos seed {seed}")
            for violation in violations[:8]:
                console.print(f"  {violation['kind']} ({VIOLATIONS[violation['kind']]}): {violation['detail']}")
        console.print(f"seeds: {self.seeds}")

    def save(self, path: Path) -> None:
        """Save everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1))

    def as_json(self) -> dict[str, Any]:
        """The table and the violations."""

        def columns(row: Row) -> dict[str, Any]:
            return {
                "runs": row.runs,
                "accepted": row.accepted,
                "repeated_calls": row.repeated,
                "worst_recovery_seconds": round(row.recovery, 2),
                **{kind: row.violations[kind] for kind in VIOLATIONS},
            }

        return {
            "seeds": self.seeds,
            "seconds": round(self.seconds, 1),
            "nemeses": {name: columns(row) for name, row in sorted(self.rows.items())},
            "sum": columns(self.total),
            "stored": self.stored,
            "unknown": self.unknown,
            "refused": self.refused,
            "calls": self.calls,
            "reads": self.reads,
            "finished": self.finished,
            "errors": self.errors,
            "slow": self.slow,
            "failed": self.failed,
        }

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())

    def _count(self, run: Run, at: float) -> Row:
        passed = window_at(run, at)
        return self._row(passed.name if passed else "none")


def violations_of(runs: Sequence[Run]) -> Counter[str]:
    """Count violations by kind."""
    return Counter(violation.kind for run in runs for violation in run.verdict.violations)
