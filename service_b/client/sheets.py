"""Files of tasks, read as the lines that are sent: each with a key of its own, so that a file may be sent again.

A CSV file has a header. Its columns are the task's own fields, and all others are parameters; an empty cell is not
there. A file of lines of JSON (`.ndjson`, `.jsonl`) is sent as it is. What is wrong with a line the service tells.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = "equipmentId", "timeoutInSeconds", "externalId", "notBefore", "notAfter"
NUMBERS = "timeoutInSeconds", "vlan"
LISTS = ("interfaces",)
"""Whole numbers with spaces between them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One task of a file: its place there (from 1 on), whom it is about, and the line to send."""

    number: int
    device: str
    line: bytes = field(repr=False)


def read(path: Path) -> list[Row]:
    """Read a file. The same file has the same keys, whenever it is read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    bodies = _of_csv(path) if path.suffix.lower() == ".csv" else _of_lines(path)
    return [_row(number, body, f"{digest}-{number:09}") for number, body in enumerate(bodies, 1)]


def _row(number: int, body: Any, key: str) -> Row:
    if not isinstance(body, dict):
        return Row(number, "", body if isinstance(body, bytes) else json.dumps(body).encode())
    line = json.dumps({"idempotencyKey": key} | body, ensure_ascii=False, separators=(",", ":"))
    return Row(number, str(body.get("equipmentId", "")), line.encode())


def _of_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    yield line.strip()


def _of_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for cells in csv.DictReader(file):
            values = {name: _value(name, text) for name, text in cells.items() if name and text}
            body = {name: values.pop(name) for name in FIELDS if name in values}
            yield body | {"parameters": values}


def _value(name: str, text: str) -> Any:
    try:
        if name in NUMBERS:
            return int(text)
        if name in LISTS:
            return [int(number) for number in text.split()]
    except ValueError:
        pass  # The service says what is wrong with it.
    return text
