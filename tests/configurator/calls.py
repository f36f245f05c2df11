"""Attempts for the configurator's tests."""

import json
from typing import Any
from uuid import uuid4

from messaging.messages import ConfigureTask

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
