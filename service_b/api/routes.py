"""The routes of the API, and what the legacy ones do."""

import json

from aiohttp import web

from runtime.answers import Answer, json_error
from service_b.api import acts, lists, problems, tasks
from service_b.api.bodies import parse_request, parse_serial
from service_b.api.errors import (
    RETRY_AFTER_SECONDS,
    ApiError,
    EquipmentNotFoundError,
    TaskNotFoundError,
)
from service_b.api.guard import Route, guarded
from service_b.api.parts import APP_NAME, PROBLEMATIC, STATUSES
from service_b.api.reading import CANONICAL_UUID, read
from service_b.api.submitting import submit
from service_b.api.trail import Caller
from service_b.api.waiting import PREFER, has_ended, look_or_wait, wait_for_new
from service_b.statuses import Status
from service_b.tokens.file import Tokens

RUNNING = b'{"code":204,"message":"Task is still running"}'
COMPLETED = b'{"code":200,"message":"Completed"}'


def add_routes(app: web.Application, tokens: Tokens | None) -> None:
    """Serve the contract's routes: to everybody, or to those who have a token."""
    problematic = set()
    for route in ROUTES:
        handler = guarded(route, tokens) if tokens and route.roles is not None else route.handler
        resource = app.router.add_resource(route.path)
        resource.add_route(route.method, handler)
        if route.method == "GET":
            resource.add_route("HEAD", handler)
        if route.problems:
            problematic.add(resource)
    app[PROBLEMATIC] = frozenset(problematic)


async def tell_name(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell who answers."""
    return Answer(200, json.dumps(f"{request.app[APP_NAME]} - v1").encode())


async def create_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Store a task, and answer with its id once it is committed."""
    serial = _parse_serial(request, caller)
    wanted = parse_request(await read(request))
    task, headers = await submit(request, caller, serial, wanted)
    if PREFER in request.headers:
        headers = headers | await wait_for_new(request, task)
    return Answer(
        200,
        b'{"code":200,"taskId":"%s"}' % task.encode(),
        {"Location": f"/api/v1/equipment/cpe/{serial}/task/{task}"} | headers,
    )


async def tell_status(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell what became of a task."""
    serial = _parse_serial(request, caller)
    task = request.match_info["task"]
    if not CANONICAL_UUID.fullmatch(task):
        raise TaskNotFoundError
    if caller:
        caller.task = task

    async def look() -> Status:
        status = await request.app[STATUSES].get(task)
        if status is None or (caller and not caller.sees(status.equipment_id, status.submitted_by)):
            raise TaskNotFoundError
        if status.equipment_id != serial:
            raise EquipmentNotFoundError
        return status

    status, applied = await look_or_wait(request, task, look, has_ended)
    if status.code == 404:
        return json_error(404, EquipmentNotFoundError().body(), applied)
    if status.code is None:
        return Answer(200, RUNNING, {"Retry-After": str(RETRY_AFTER_SECONDS)} | applied)
    if status.code != 200:
        return json_error(ApiError.code, ApiError().body(), applied)
    return Answer(200, COMPLETED, applied)


ROUTES = (
    Route("GET", "/api/v1/", tell_name, frozenset()),
    Route("POST", "/api/v1/equipment/cpe/{id:[^/]+}", create_task, frozenset({"submit"})),
    Route("GET", "/api/v1/equipment/cpe/{id:[^/]+}/task/{task:[^/]+}", tell_status, frozenset({"read", "operate"})),
    *tasks.ROUTES,
    *lists.ROUTES,
    *acts.ROUTES,
    *problems.ROUTES,
)


def _parse_serial(request: web.Request, caller: Caller | None) -> str:
    """Read whose device it is about. One that a token is not for answers as one that does not exist."""
    serial = parse_serial(request.match_info["id"])
    if caller and not caller.covers(serial):
        raise EquipmentNotFoundError
    return serial
