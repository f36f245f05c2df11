"""What all routes that make a task have in common."""

import json
from typing import Any

from aiohttp import web

from service_b.api.bodies import ConfigureRequest
from service_b.api.errors import InvalidBodyError, KeyReusedError, TooManyTasksError
from service_b.api.keys import KEY, once_of
from service_b.api.parts import SUBMISSION
from service_b.api.trail import Caller
from service_b.idempotency import Once, ReusedError
from service_b.submission import FullError, LateError, Wishes

REPLAYED = {"Idempotent-Replayed": "true"}
"""Told with a task that was there already."""


async def submit(
    request: web.Request,
    caller: Caller | None,
    equipment_id: str,
    configure: ConfigureRequest,
    wishes: Wishes | None = None,
) -> tuple[str, dict[str, str]]:
    """Store the task that a request asks for; return its id, and the headers that the answer has for that."""
    once = once_of(request, *content_of(equipment_id, configure, wishes)) if KEY in request.headers else None
    task, is_replayed = await store(request, caller, once, equipment_id, configure, wishes=wishes)
    if caller:
        caller.task = task
    return task, REPLAYED if is_replayed else {}


async def store(
    request: web.Request,
    caller: Caller | None,
    once: Once | None,
    equipment_id: str,
    configure: ConfigureRequest,
    *,
    wishes: Wishes | None = None,
) -> tuple[str, bool]:
    """Store a task, under a key or without one; return its id, and whether it was there already.

    Whether `notAfter` is still to come is judged here: a task that is there already is told of ever after.

    Raises `InvalidBodyError`, `TooManyTasksError`, `KeyReusedError`, and what `Storage.ask` raises.
    """
    submission = request.app[SUBMISSION]
    of = configure.timeout_seconds, configure.parameters
    by = caller.access.name if caller else None
    try:
        if once is None:
            return str(await submission.submit(equipment_id, *of, by, wishes)), False
        task, is_replayed = await submission.submit_once(once, equipment_id, *of, submitted_by=by, wishes=wishes)
        return str(task), is_replayed
    except LateError:
        raise InvalidBodyError([{"loc": ["notAfter"], "msg": "Time should be in the future"}]) from None
    except FullError as error:
        raise TooManyTasksError("client" if error.whose == "token" else "equipment") from None
    except ReusedError:
        raise KeyReusedError from None


def content_of(equipment_id: str, configure: ConfigureRequest, wishes: Wishes | None) -> list[Any]:
    """Return what makes a request for a task this one and no other, as `make_once` takes it."""
    parameters = json.loads(configure.parameters)
    asked = wishes or Wishes()
    of_the_task = [equipment_id, configure.timeout_seconds, parameters]
    of_which = [str(asked.retry_of)] if asked.retry_of else []
    return [*of_the_task, asked.external_id, asked.not_before, asked.not_after, *of_which]
