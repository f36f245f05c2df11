"""`Prefer: wait=N` (RFC 7240): an answer that is given when the task has ended, or after N seconds."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from aiohttp import web
from multidict import istr

from service_b.api.parts import STATUSES, WAITS
from service_b.statuses import Status
from service_b.storage import StorageUnavailableError

T = TypeVar("T")

PREFER = istr("Prefer")
WAITED = web.RequestKey("WAITED", float)
MAX_SECONDS = 300
PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
WAIT = re.compile(r'\s*wait\s*=\s*"?(\d+)"?\s*(;.*)?', re.ASCII | re.IGNORECASE | re.DOTALL)


def preferred_seconds(request: web.Request) -> int | None:
    """Tell how long the client would wait, at most `MAX_SECONDS`; None where it does not say so, or not clearly.

    Also where as many wait as may: a preference need not be met.
    """
    if PREFER not in request.headers or request.app[WAITS].is_full:
        return None
    preferences = ",".join(request.headers.getall(PREFER))
    # Of several, the first (RFC 7240, 2).
    match = next(filter(None, map(WAIT.fullmatch, PREFERENCE.findall(preferences))), None)
    if match is None:
        return None
    digits = match[1].lstrip("0")
    return min(int(digits or "0"), MAX_SECONDS) if len(digits) < 9 else MAX_SECONDS


def waited_seconds(request: web.Request) -> float:
    """Tell how long a request was answered later because its client wanted that."""
    return request.get(WAITED, 0.0) if PREFER in request.headers else 0.0


def has_ended(status: Status | None) -> bool:
    """Tell whether there is nothing more to wait for."""
    return status is None or status.code is not None


async def wait_for_new(request: web.Request, task: str) -> dict[str, str]:
    """Wait for the end of a task that was just stored, if the client would; return headers."""
    try:
        _, applied = await look_or_wait(request, task, partial(request.app[STATUSES].get, task), has_ended)
    except StorageUnavailableError:  # It is stored all the same: its client must get its id.
        return {}
    return applied


async def look_or_wait(
    request: web.Request, task: str, look: Callable[[], Awaitable[T]], is_over: Callable[[T], bool]
) -> tuple[T, dict[str, str]]:
    """Look at a task, when it has ended if the client would wait for that; return what was seen, and headers.

    What `look` raises is raised at once.
    """
    if (seconds := preferred_seconds(request)) is None:
        return await look(), {}
    waits = request.app[WAITS]
    seen, request[WAITED] = await waits.wait(task, seconds, look, is_over, lambda: request.transport is None)
    return seen, {"Preference-Applied": f"wait={seconds}"}
