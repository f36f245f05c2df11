"""Attempts for the configurator's tests."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from configurator.jobs import Job
from messaging.deliveries import Delivery, Receipts
from messaging.messages import ConfigureTask
from runtime.clock import now

LIMIT = 60.0
"""Seconds of a call, where the test does not wait for them."""


def make_task(
    equipment_id: str = "ROUTER1", *, limit: float = LIMIT, attempt: int = 1, **parameters: Any
) -> ConfigureTask:
    """Make an attempt at a new task."""
    return ConfigureTask(
        task_id=uuid4(),
        attempt=attempt,
        equipment_id=equipment_id,
        timeout_in_seconds=14,
        time_limit_seconds=limit,
        parameters=json.dumps(parameters or {"username": "admin", "password": "secret", "interfaces": [1]}),
    )


class Nobody:
    """A channel whose messages nobody waits for."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def acknowledge(self, receipts: Receipts, tags: Sequence[int]) -> None:
        """Do nothing."""

    def give_back(self, receipts: Receipts, tags: Sequence[int]) -> None:
        """Do nothing."""

    async def dead_letter(self, queue: str, delivery: Delivery, reason: str) -> None:
        """Do nothing."""


def make_delivery() -> Delivery:
    """Make a delivery that nobody waits for."""
    return Delivery(Nobody(), Receipts(1), 1, b"")


def make_job(equipment_id: str = "ROUTER1", *, waited: float = 0, **changed: Any) -> Job:
    """Make a job whose lease was asked for `waited` seconds ago."""
    task = make_task(equipment_id, **changed)
    return Job(task, make_delivery(), asked_at=now() - waited)
