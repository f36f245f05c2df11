"""The task as a resource: making one, and all that there is to tell of it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiohttp import web

from runtime.answers import Answer
from service_b.api import bulk
from service_b.api.envelopes import parse_envelope
from service_b.api.errors import EquipmentNotFoundError, TaskNotFoundError
from service_b.api.guard import Route
from service_b.api.parts import HORIZON, RESOURCES
from service_b.api.reading import CANONICAL_UUID, read
from service_b.api.submitting import submit
from service_b.api.times import show_time
from service_b.api.trail import Caller
from service_b.api.waiting import look_or_wait
from service_b.resources import Task

TASKS = "/api/v1/tasks"
TASK = f"{TASKS}/{{id:[^/]+}}"


async def make_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Store a task, and show it once it is committed; or many, see `bulk`."""
    if request.content_type == bulk.KIND:
        return await bulk.make_tasks(request, caller)
    wanted = parse_envelope(await read(request), request.app[HORIZON])
    if caller and not caller.covers(wanted.equipment_id):
        raise EquipmentNotFoundError
    name, headers = await submit(request, caller, wanted.equipment_id, wanted.configure, wanted.wishes)
    return await show_new(request, name, headers)


async def show_new(request: web.Request, name: str, headers: dict[str, str]) -> web.StreamResponse:
    """Show a task that was just stored; when it has ended, if the client would wait for that."""
    task, applied = await look_or_wait(request, name, partial(request.app[RESOURCES].get, name), _has_ended)
    return show(202, task, {"Location": f"{TASKS}/{name}"} | headers | applied)


async def show_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell all there is to tell of a task."""
    task, applied = await look_or_wait(request, request.match_info["id"], partial(find, request, caller), _has_ended)
    return show(200, task, applied)


async def find(
    request: web.Request, caller: Caller | None, may: Callable[[Caller, str, str | None], bool] = Caller.sees
) -> Task:
    """Find the task of the request's path; one with which the caller `may` not do this does not exist."""
    name = request.match_info["id"]
    if not CANONICAL_UUID.fullmatch(name):
        raise TaskNotFoundError
    if caller:
        caller.task = name
    task = await request.app[RESOURCES].get(name)
    if task is None or (caller and not may(caller, task.equipment_id, task.submitted_by)):
        raise TaskNotFoundError
    return task


def show(code: int, task: Task | None, headers: dict[str, str] | None = None) -> Answer:
    """Make the answer that shows a task."""
    if task is None:  # Forgotten since a moment ago, by somebody's own SQL.
        raise TaskNotFoundError
    return Answer(code, json.dumps(shown(task), separators=(",", ":")).encode(), headers)


def _has_ended(task: Task | None) -> bool:
    return task is None or task.code is not None


def shown(task: Task) -> dict[str, Any]:
    """Return a task's JSON object (contract, section 9)."""
    return {
        "id": str(task.id),
        "equipmentId": task.equipment_id,
        "state": task.state,
        "externalId": task.external_id,
        "campaign": None,
        "submittedBy": task.submitted_by,
        "timeoutInSeconds": task.timeout_seconds,
        "attempt": task.attempt,
        "ahead": task.ahead,
        "cancelRequested": task.cancel_requested,
        "retryOf": task.retry_of and str(task.retry_of),
        "createdAt": show_time(task.created_at),
        "notBefore": show_time(task.not_before),
        "notAfter": show_time(task.not_after),
        "begunAt": show_time(task.begun_at),
        "finishedAt": show_time(task.finished_at),
        "nextAttemptAt": show_time(task.next_attempt_at),
        "code": task.code,
        "reason": task.reason,
        "history": [_shown_event(event) for event in task.history],
    }


def _shown_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event's JSON object, with all keys; its row has those that say something."""
    at = datetime.fromisoformat(event["at"]).astimezone(UTC)
    return {"at": show_time(at)} | {key: event.get(key) for key in ("event", "attempt", "outcome", "reason", "by")}


ROUTES = (
    Route("POST", TASKS, make_task, frozenset({"submit"}), problems=True),
    Route("GET", TASK, show_task, frozenset({"read", "operate"}), problems=True),
)
