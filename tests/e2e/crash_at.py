"""`python -m tests.e2e.crash_at MODULE POINT`: run a process of ours that kills itself (SIGKILL) at one point.

The point lies before or after a function of the production code, or of a library; the code itself knows nothing of
this.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from configurator.leases import Leases
from configurator.service_a import ServiceA
from messaging.channel import Channel
from service_b.tasks import claims, keys, leases, outcomes, promotion


def die() -> None:
    """End at once, as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    """Make the process die instead of calling a function; one that is not there any more is an error."""
    assert callable(getattr(owner, name))
    setattr(owner, name, lambda *_, **__: die())


def after(owner: Any, name: str, counts: Callable[[dict[str, Any], Any], object]) -> None:
    """Make the process die once a coroutine function has returned, if its keywords and its result count."""
    original = getattr(owner, name)

    @wraps(original)
    async def dying(*arguments: Any, **keywords: Any) -> Any:
        result = await original(*arguments, **keywords)
        if counts(keywords, result):
            die()
        return result

    setattr(owner, name, dying)


POINTS: dict[str, Callable[[], None]] = {
    "relay: claimed, not published": lambda: after(claims, "claim", lambda _, claimed: claimed),
    # The broker confirms what it has safe; to die as its confirm arrives is to die before having seen it.
    "relay: published, not confirmed": lambda: before(Channel, "on_confirm"),
    "relay: confirmed": lambda: after(Channel, "publish", lambda *_: True),
    "configurator: delivered, not asked": lambda: before(Leases, "ask"),
    "configurator: granted, not called": lambda: before(ServiceA, "configure"),
    "configurator: answered, not published": lambda: before(Channel, "publish"),
    "configurator: published, not confirmed": lambda: before(Channel, "on_confirm"),
    "configurator: confirmed, not acknowledged": lambda: before(Channel, "acknowledge"),
    "results: granted, not told": lambda: after(leases, "grant", lambda _, answers: "granted" in answers),
    "results: delivered, not recorded": lambda: before(outcomes, "apply"),
    "results: recorded, not committed": lambda: before(promotion, "promote"),
    "results: committed, not acknowledged": lambda: after(outcomes, "apply", lambda *_: True),
}

OWN_POINTS: dict[str, Callable[[], None]] = {
    "web: committed, not answered": lambda: after(keys, "insert_once", lambda *_: True),
}
"""Points that need a client of their own."""


if __name__ == "__main__":
    module, point = sys.argv[1:]
    (POINTS | OWN_POINTS)[point]()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
