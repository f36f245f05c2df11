"""`python -m tests.e2e.crash_at MODULE POINT`: run a process of ours that kills itself (SIGKILL) at one point.

The point is a function of the production code, and whether to die before or after it; the production code knows
nothing of this.
"""

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from configurator.service_a import ServiceA
from messaging.channel import Channel, Delivery
from service_b.tasks import TaskTable

POINTS: dict[str, tuple[type, str, str]] = {
    "relay: claimed, not published": (TaskTable, "claim", "after"),
    "relay: publishing": (Channel, "publish", "during"),
    "relay: published and confirmed": (Channel, "publish", "after"),
    "configurator: delivered, not called": (ServiceA, "configure", "before"),
    "configurator: calling": (ServiceA, "configure", "during"),
    "configurator: answered, not published": (Channel, "publish", "before"),
    "configurator: publishing the outcome": (Channel, "publish", "during"),
    "configurator: published, not acknowledged": (Delivery, "ack", "before"),
    "results: delivered, not recorded": (TaskTable, "apply", "before"),
    "results: recording": (TaskTable, "apply", "during"),
    "results: recorded, not acknowledged": (Delivery, "ack", "before"),
}
DURING_SECONDS = 0.003
"""Enough for the bytes to be on their way, too little for the answer of a call."""


def die() -> None:
    """End at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def sabotage(owner: type, name: str, moment: str) -> None:
    """Wrap a coroutine function so that the process dies before, during or after its first call that does something."""
    original: Callable[..., Any] = getattr(owner, name)

    @wraps(original)
    async def dying(*arguments: Any, **keywords: Any) -> Any:
        if name == "publish" and not keywords.get("mandatory", True):
            return await original(*arguments, **keywords)  # The reconciler's probe carries no task.
        if moment == "before":
            die()
        if moment == "during":
            asyncio.get_running_loop().call_later(DURING_SECONDS, die)
        result = await original(*arguments, **keywords)
        if moment == "after" and result:
            die()
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    module, point = sys.argv[1:]
    sabotage(*POINTS[point])
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
