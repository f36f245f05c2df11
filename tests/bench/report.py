"""What was measured, and whether it is what must be shown."""

import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Figures = Mapping[str, float]

PATH_PIECES = {
    "handler": 1,
    "insert": 1,
    "claim": 1,
    "publish": 2,  # the task to the configurator, the outcome back
    "consume": 1,
    "call": 1,
    "consume many": 1,
    "update": 1,
}
"""The bare pieces of which one task's way is made, from POST to final status."""

ACCEPT_PIECES = ("handler", "insert", "publish")


@dataclass(frozen=True)
class Ratio:
    """One thing that must be shown: `value` of the figures against a limit."""

    title: str
    value: Callable[[Figures], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def judge(self, rounds: Sequence[Figures]) -> tuple[float, bool] | None:
        """Tell the median of all rounds and whether it will do; None when what it needs was not measured."""
        values = []
        for figures in rounds:
            with suppress(KeyError):
                values.append(self.value(figures))
        if not values:
            return None
        value = statistics.median(values)
        enough = self.at_least is None or value >= self.at_least
        return value, enough and (self.at_most is None or value <= self.at_most)


def path_cost(figures: Figures) -> float:
    """Sum the CPU µs of a task's pieces, our processes and both servers together."""
    return sum(
        times * (figures[f"floor.{piece}.own"] + figures.get(f"floor.{piece}.server", 0.0))
        for piece, times in PATH_PIECES.items()
    )


def ideal_path_rate(figures: Figures) -> float:
    """Tasks a second when every core of the machine does nothing but the pieces."""
    return 1e6 * figures["machine.cores"] / path_cost(figures)


def ideal_accept_rate(figures: Figures) -> float:
    """Tasks a second when one process does nothing but the pieces of accepting."""
    return 1e6 / sum(figures[f"floor.{piece}.own"] for piece in ACCEPT_PIECES)


def growth_ratio(state: str, rate: str) -> Ratio:
    """A rate with a grown table as a share of the rate with an empty one, measured in turn with it."""
    name = f"growth.{state}.{rate}"
    return Ratio(f"growth, {state}, {rate} / empty table", lambda f: f[name] / f[f"{name}, empty table"], at_least=0.85)


def down_ratio(connections: int) -> Ratio:
    """The rate of accepting with the broker down as a share of the bare handler's, measured right before it."""
    name = f"accept.no broker.{connections}"
    return Ratio(
        f"accept, broker down / bare handler, {connections} connections",
        lambda f: f[f"{name}.rate"] / f[f"{name}.bare handler"],
        at_least=0.75,
    )


def plans_ratio(figures: Figures) -> float:
    """The slowest path as a share of the fastest, each under statistics of another state of the table."""
    rates = [figures[f"plans.{state}.rate"] for state in ("empty", "all pending", "all finished")]
    return min(rates) / max(rates)


RATIOS = (
    Ratio("accept, relay included / ideal", lambda f: f["accept.64.rate"] / ideal_accept_rate(f), at_least=0.75),
    Ratio("accept, p99 / median, 64 connections", lambda f: f["accept.64.p99"] / f["accept.64.p50"], at_most=3),
    down_ratio(64),
    down_ratio(512),
    Ratio(
        "status, finished / bare handler", lambda f: f["status.finished.rate"] / f["status.bare handler"], at_least=0.8
    ),
    Ratio(
        "status, unfinished / bare handler",
        lambda f: f["status.unfinished.rate"] / f["status.bare handler"],
        at_least=0.6,
    ),
    Ratio("path / ideal", lambda f: f["path.rate"] / ideal_path_rate(f), at_least=0.75),
    Ratio("slots, makespan less A's delay", lambda f: f["slots.makespan"] - f["slots.delay"], at_most=6, unit="s"),
    Ratio("slots, occupancy", lambda f: f["slots.occupancy"], at_least=0.95),
    Ratio("slots, memory of one", lambda f: f["slots.kib"], at_most=40, unit="KiB"),
    Ratio("slots, added latency, p99", lambda f: f["slots.added p99"], at_most=1, unit="s"),
    *(
        growth_ratio(state, rate)
        for state in ("pending", "finished", "one device")
        for rate in ("accept", "status unfinished", "status finished", "path")
    ),
    Ratio("path, slowest / fastest under stale statistics", plans_ratio, at_least=0.85),
    Ratio("path, a row locked / none", lambda f: f["locked.path"] / f["locked.path, no lock"], at_least=0.85),
    Ratio(
        "POST's median, 32 scrapers / none",
        lambda f: f["scrapers.POST p50"] / f["scrapers.POST p50, none"],
        at_most=2,
    ),
    Ratio("idle, share of one core", lambda f: f["idle.total"], at_most=0.01),
)
"""What issue 4 asks for. Of each, the median of the rounds counts: machines differ from minute to minute, too."""

HINTS = (
    Ratio(
        "accept, CPU of the pieces / CPU of the web process",
        lambda f: 1e6 / ideal_accept_rate(f) / f["accept.64.service_b"],
    ),
    Ratio("path, CPU of the pieces / CPU of everything", lambda f: path_cost(f) / f["path.total"]),
    Ratio(
        "load generator's ceiling / fastest thing measured",
        lambda f: f["floor.generator.rate"] / f["floor.handler.rate"],
    ),
)
"""The same by CPU time, which a busy machine disturbs less; and whether the load generator was in the way."""


@dataclass
class Report:
    """Figures by dotted name, `section.what...`; of each, the samples of all rounds."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    units: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str) -> None:
        """Note one sample."""
        self.samples[name].append(value)
        self.units[name] = unit

    @property
    def figures(self) -> dict[str, float]:
        """The median of each figure's samples."""
        return {name: statistics.median(samples) for name, samples in self.samples.items()}

    def round(self, number: int) -> dict[str, float]:
        """The samples of one round (-1: the last one); what is measured only once is the same in each."""
        return {
            name: samples[0] if len(samples) == 1 else samples[number]
            for name, samples in self.samples.items()
            if len(samples) == 1 or number < len(samples)
        }

    def judged(self, ratios: Sequence[Ratio] = RATIOS) -> list[tuple[Ratio, float, bool]]:
        """Each ratio whose figures were measured, its value, and whether it will do."""
        rounds = [self.round(number) for number in range(max(map(len, self.samples.values())))]
        return [(ratio, *verdict) for ratio in ratios if (verdict := ratio.judge(rounds))]

    def tables(self) -> list[Table]:
        """Everything for a person: the figures, then the ratios."""
        figures = self.figures
        table = Table("what", "median", "unit", "from", "to", title="Figures")
        section = ""
        for name, value in figures.items():
            if name.partition(".")[0] != section:
                section = name.partition(".")[0]
                table.add_section()
            low, high = min(self.samples[name]), max(self.samples[name])
            spread = (shown(low), shown(high)) if len(self.samples[name]) > 1 else ("", "")
            table.add_row(name.replace(".", "  "), shown(value), self.units[name], *spread)
        verdicts = Table("ratio", "value", "must be", "", title="Must show")
        for ratio, value, good in self.judged():
            limit = f"≥ {ratio.at_least}" if ratio.at_least is not None else f"≤ {ratio.at_most}"
            mark = "[green]pass[/]" if good else "[red]miss[/]"
            verdicts.add_row(ratio.title, f"{value:.3g} {ratio.unit}", f"{limit} {ratio.unit}", mark)
        verdicts.add_section()
        for ratio, value, _ in self.judged(HINTS):
            verdicts.add_row(ratio.title, f"{value:.3g}", "", "")
        return [table, verdicts]

    def print(self, console: Console) -> None:
        """Show it."""
        for table in self.tables():
            console.print(table)

    def as_json(self) -> dict[str, Any]:
        """Everything for a machine."""
        return {
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "figures": {
                name: {"median": value, "unit": self.units[name], "samples": self.samples[name]}
                for name, value in self.figures.items()
            },
            "ratios": [
                {
                    "title": ratio.title,
                    "value": value,
                    "at_least": ratio.at_least,
                    "at_most": ratio.at_most,
                    "pass": good,
                }
                for ratio, value, good in self.judged()
            ],
        }

    def save(self, path: Path) -> None:
        """Keep it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")


def shown(value: float) -> str:
    """Write a figure with three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
