"""The table of faults: what was done, how often, and what it did; and RESULTS.md, which is made of it."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import VIOLATIONS
from tests.chaos.history import Event, read
from tests.chaos.scenario import Passed, Run, window_at
from tests.chaos.transitions import FINAL

RECOVERY_GOAL_SECONDS = 15.0
"""From the end of a fault to the first task that ends."""
WAIT_GOAL_SECONDS = 60.0
"""From the end of a fault to the end of each task that it hit."""
SHOWN = ("lost", "doubled", "overlapping", "without a lease", "after the deadline", "order", "going back")


COLUMNS = ("runs", "accepted", *SHOWN, "other", "repeated", "hit", "first, s", "99 %, s", "all, s")
INTRODUCTION = Path(__file__).with_name("results.template.md")


@dataclass(slots=True)
class Row:
    """One nemesis over all runs."""

    runs: int = 0
    accepted: int = 0
    repeated: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    recovery: float = 0.0
    waits: list[float] = field(default_factory=list)
    """From the end of the fault to the end of each task that it hit."""

    def wait(self, share: float) -> float:
        """What so many of the tasks that were hit did not wait longer than."""
        ordered = sorted(self.waits)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


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
        self.late: Counter[str] = Counter()
        self.errors_of_ours: list[str] = []
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
        for passed in run.passed:
            if passed.error:
                self.errors_of_ours.append(f"seed {run.seed}: {' + '.join(passed.nemeses)}: {passed.error}")
        events = read(run.folder)
        for passed, wait in _waits(run, events):
            self._row(passed.name).waits.append(wait)
            self.total.waits.append(wait)
            if wait > WAIT_GOAL_SECONDS:
                self.late[f"seed {run.seed}: {' + '.join(passed.nemeses)}"] += 1
        calls: Counter[str] = Counter()
        accepted: set[str] = set()
        for event in events:
            if event["kind"] == "submitted" and event["status"] == 200:
                if event["task"] in accepted:
                    continue  # Sent again under its key.
                accepted.add(event["task"])
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
        table.add_column("nemesis", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for name, row in [*sorted(self.rows.items()), ("sum", self.total)]:
            if name == "sum":
                table.add_section()
            table.add_row(name, *_cells(row))
        console.print(table)
        console.print(
            f"{self.stored:,} tasks stored, {self.unknown:,} submissions unknown, {self.refused:,} answered 503; "
            f"{self.calls:,} calls of A, {self.reads:,} reads; final codes {dict(self.finished)}"
        )
        console.print(f"ended in error because of: {dict(self.errors.most_common(12))}")
        for line in self.slow:
            console.print(f"[yellow]over {RECOVERY_GOAL_SECONDS:g} s to recover:[/] {line}")
        for what, count in self.late.items():
            console.print(f"[yellow]over {WAIT_GOAL_SECONDS:g} s until they ended:[/] {count:,} tasks that {what} hit")
        for line in self.errors_of_ours:
            console.print(f"[yellow]a nemesis failed:[/] {line}")
        for seed, violations in self.failed.items():
            console.print(f"[red]seed {seed} failed[/]; again: python -m tests.chaos seed {seed}")
            for violation in violations[:8]:
                console.print(f"  {violation['kind']} ({VIOLATIONS[violation['kind']]}): {violation['detail']}")
        console.print(f"seeds: {self.seeds}")

    def save(self, path: Path) -> None:
        """Save everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.as_markdown() if path.suffix == ".md" else json.dumps(self.as_json(), indent=1))

    def as_markdown(self) -> str:
        """RESULTS.md."""
        rows = [*sorted(self.rows.items()), ("**sum**", self.total)]
        broken = sum(self.total.violations.values())
        return INTRODUCTION.read_text().format(
            minutes=self.seconds / 60,
            runs=len(self.seeds),
            seeds=", ".join(str(seed) for seed in dict.fromkeys(self.seeds)),
            table="\n".join(
                (
                    f"| fault | {' | '.join(COLUMNS)} |",
                    f"| --- |{' ---: |' * len(COLUMNS)}",
                    *(f"| {name} | {' | '.join(_cells(row))} |" for name, row in rows),
                )
            ),
            verdict="Not one promise was broken" if not broken else f"**{broken:,} violations were found**",
            **{name: getattr(self, name) for name in ("stored", "unknown", "refused", "calls", "reads")},
            p99=self.total.wait(0.99),
            worst=self.total.wait(1),
            hit=len(self.total.waits),
        )

    def as_json(self) -> dict[str, Any]:
        """The table and the violations."""

        def columns(row: Row) -> dict[str, Any]:
            return {
                "runs": row.runs,
                "accepted": row.accepted,
                "repeated_calls": row.repeated,
                "worst_recovery_seconds": round(row.recovery, 2),
                "hit": len(row.waits),
                "wait_99_seconds": round(row.wait(0.99), 2),
                "worst_wait_seconds": round(row.wait(1), 2),
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
            "late": self.late,
            "failed_nemeses": self.errors_of_ours,
            "failed": self.failed,
        }

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())

    def _count(self, run: Run, at: float) -> Row:
        passed = window_at(run, at)
        return self._row(passed.name if passed else "none")


def _cells(row: Row) -> list[str]:
    other = sum(count for kind, count in row.violations.items() if kind not in SHOWN)
    counts = [row.runs, row.accepted, *(row.violations[kind] for kind in SHOWN), other, row.repeated, len(row.waits)]
    return [*(f"{count:,}" for count in counts), *(f"{s:.1f}" for s in (row.recovery, row.wait(0.99), row.wait(1)))]


def _waits(run: Run, events: Sequence[Event]) -> Iterator[tuple[Passed, float]]:
    """Tell of each task that a fault hit, not finished when it was over, how long it was until it ended.

    A task that several faults hit counts for the first.
    """
    stored: dict[str, float] = {}
    ended: dict[str, float] = {}
    for event in events:
        if event["kind"] == "transition":
            stored.setdefault(event["task"], event["t"])
            if event["status"] in FINAL:
                ended.setdefault(event["task"], event["t"])
    for task, at in stored.items():
        end = ended.get(task, math.inf)
        for passed in run.passed:
            if at <= passed.healed < end:
                yield passed, end - passed.healed
                break


def violations_of(runs: Sequence[Run]) -> Counter[str]:
    """Count violations by kind."""
    return Counter(violation.kind for run in runs for violation in run.verdict.violations)
