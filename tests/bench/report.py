"""What was measured, and whether it is what must be shown."""

import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.aims import AIMS, HINTS, Ratio


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

    def judged(self, ratios: Sequence[Ratio] = AIMS) -> list[tuple[Ratio, float, bool]]:
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
