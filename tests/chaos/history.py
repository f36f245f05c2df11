"""The history: what every observer saw, appended line by line, so that it outlives whoever wrote it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Event = dict[str, Any]
"""`t`: `time.monotonic()` (one clock for all processes of a Linux machine), `w`: Unix time, `kind`, and its fields."""
VARIABLE = "CHAOS_HISTORY"
"""The variable that tells a process of ours where to write."""


class History:
    """One observer's file of JSON lines. Each line is handed to the kernel at once: a SIGKILL loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event; fields named `t` and `w` replace the time of writing."""
        self._file.write(json.dumps({"t": time.monotonic(), "w": time.time(), "kind": kind} | fields) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(folder: Path) -> list[Event]:
    """Read all observers' files of a run, in the order of time."""
    return sorted(_lines(folder), key=lambda event: float(event["t"]))


def _lines(folder: Path) -> Iterator[Event]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):  # The last one of a killed process may be half a line.
                    yield json.loads(line)
