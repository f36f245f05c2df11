"""Submitting a file, whatever becomes of the network meanwhile, and following its tasks to their ends."""

import asyncio
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from service_b.client.service import RefusedError, Service
from service_b.client.sheets import Row

PAUSES = 1.0, 2.0, 5.0, 10.0, 30.0
"""Before each new try, where the last one brought nothing."""
AGAIN = {408, 503}
FOLLOWERS = 200
"""So many tasks are waited for at once."""
COLUMNS = "line", "equipmentId", "id", "state", "code", "reason"

Advance = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a row: a state of a task, `accepted` where nobody has looked since, or `refused`."""

    row: Row
    id: str
    state: str
    code: int | None
    reason: str

    @property
    def is_failure(self) -> bool:
        """Whether it is not what was hoped for."""
        return self.state not in ("accepted", "succeeded")


async def submit(
    service: Service, rows: Sequence[Row], advance: Advance, *, pauses: Sequence[float] = PAUSES
) -> list[Outcome]:
    """Send all rows, and again those that got no answer; those that are there already are only found again.

    `advance` is called for each answer. Raises what the last try of many raises.
    """
    outcomes: dict[int, Outcome] = {}
    left, tries = rows, iter(pauses)
    while True:
        error: Exception | None = None
        try:
            async for place, told in service.submit([row.line for row in left]):
                if told["code"] not in AGAIN:
                    outcomes[left[place].number] = _told(left[place], told)
                    advance()
        except RefusedError as refused:
            if refused.status < 500:
                raise
            error = refused
        except (aiohttp.ClientError, TimeoutError) as broken:
            error = broken
        still = [row for row in left if row.number not in outcomes]
        if not still:
            return [outcomes[row.number] for row in rows]
        if len(still) < len(left):
            tries = iter(pauses)
        left = still
        if (pause := next(tries, None)) is None:
            raise error or RefusedError(503, f"{len(left)} lines got no answer")
        await asyncio.sleep(pause)


async def follow(service: Service, outcomes: Sequence[Outcome], advance: Advance) -> list[Outcome]:
    """Wait for the ends of tasks that were accepted. `advance` is called for each end."""
    ended: dict[int, Outcome] = {}
    left = iter([outcome for outcome in outcomes if outcome.state == "accepted"])

    async def go_on() -> None:
        for outcome in left:
            told = await service.ended(outcome.id)
            ended[outcome.row.number] = Outcome(
                outcome.row, outcome.id, told["state"], told["code"], told["reason"] or ""
            )
            advance()

    await asyncio.gather(*(go_on() for _ in range(FOLLOWERS)))
    return [ended.get(outcome.row.number, outcome) for outcome in outcomes]


def write_failures(path: Path, failures: Iterable[Outcome]) -> None:
    """Write a CSV file of what has failed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for each in failures:
            writer.writerow((each.row.number, each.row.device, each.id, each.state, each.code, each.reason))


def _told(row: Row, told: dict[str, Any]) -> Outcome:
    if told["code"] == 202:
        return Outcome(row, told["id"], "accepted", None, "")
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in told.get("errors", ()))
    return Outcome(row, "", "refused", told["code"], faults or told.get("detail", ""))
