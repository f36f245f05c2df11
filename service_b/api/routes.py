"""The HTTP API of the facade."""

import asyncio
import json
import re
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from multidict import CIMultiDictProxy

from runtime.answers import Answer, json_error
from service_b.api.bodies import parse_request, parse_serial
from service_b.api.errors import (
    RETRY_AFTER_SECONDS,
    ApiError,
    BadRequestError,
    CompressedBodyError,
    EquipmentNotFoundError,
    TaskNotFoundError,
    TooManyTasksError,
)
from service_b.api.guard import Route, guarded
from service_b.api.trail import Caller
from service_b.statuses import Statuses
from service_b.submission import FullError, Submission
from service_b.tokens.file import Tokens

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_SECONDS = 10.0

CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

RUNNING = b'{"code":204,"message":"Task is still running"}'
COMPLETED = b'{"code":200,"message":"Completed"}'


APP_NAME = web.AppKey("APP_NAME", str)
SUBMISSION = web.AppKey("SUBMISSION", Submission)
STATUSES = web.AppKey("STATUSES", Statuses)


def add_routes(router: web.UrlDispatcher, tokens: Tokens | None) -> None:
    """Serve the contract's routes: to everybody, or to those who have a token."""
    for route in ROUTES:
        handler = guarded(route, tokens) if tokens else route.handler
        router.add_route(route.method, route.path, handler)
        if route.method == "GET":
            router.add_route("HEAD", route.path, handler)


async def tell_name(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell who answers."""
    return Answer(200, json.dumps(f"{request.app[APP_NAME]} - v1").encode())


async def create_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Store a task, and answer with its id once it is committed."""
    serial = _parse_serial(request, caller)
    if _is_compressed(request.headers):
        raise CompressedBodyError
    wanted = parse_request(await _read(request))
    submitted_by = caller.access.name if caller else None
    try:
        task = await request.app[SUBMISSION].submit(serial, wanted.timeout_seconds, wanted.parameters, submitted_by)
    except FullError as error:
        raise TooManyTasksError("client" if error.whose == "token" else "equipment") from None
    name = str(task)
    if caller:
        caller.task = name
    return Answer(
        200,
        b'{"code":200,"taskId":"%s"}' % name.encode(),
        {"Location": f"/api/v1/equipment/cpe/{serial}/task/{name}"},
    )


async def tell_status(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell what became of a task."""
    serial = _parse_serial(request, caller)
    if not CANONICAL_UUID.fullmatch(request.match_info["task"]):
        raise TaskNotFoundError
    if caller:
        caller.task = request.match_info["task"]
    status = await request.app[STATUSES].get(request.match_info["task"])
    if status is None or (caller and not caller.sees(status.equipment_id, status.submitted_by)):
        raise TaskNotFoundError
    if status.equipment_id != serial or status.code == 404:
        raise EquipmentNotFoundError
    if status.code is None:
        return Answer(200, RUNNING, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    if status.code != 200:
        return json_error(ApiError.code, ApiError().body())
    return Answer(200, COMPLETED)


ROUTES = (
    Route("GET", "/api/v1/", tell_name, frozenset()),
    Route("POST", "/api/v1/equipment/cpe/{id:[^/]+}", create_task, frozenset({"submit"})),
    Route("GET", "/api/v1/equipment/cpe/{id:[^/]+}/task/{task:[^/]+}", tell_status, frozenset({"read", "operate"})),
)


def _parse_serial(request: web.Request, caller: Caller | None) -> str:
    """Read whose device it is about. One that a token is not for answers as one that does not exist."""
    serial = parse_serial(request.match_info["id"])
    if caller and not caller.covers(serial):
        raise EquipmentNotFoundError
    return serial


def _is_compressed(headers: CIMultiDictProxy[str]) -> bool:
    """Tell from both headers that can say so; the first may come in several lines."""
    if "Content-Encoding" in headers and [each.lower() for each in headers.getall("Content-Encoding")] != ["identity"]:
        return True
    return headers.get("Transfer-Encoding", "chunked").lower() != "chunked"


async def _read(request: web.Request) -> bytes:
    """Read the body. A client that leaves, breaks its own framing or dawdles is told so, if it can still be told."""
    try:
        if request.content.is_eof():  # It came with the head, as nearly always: nothing to wait for.
            body = request.content.read_nowait()
            if len(body) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
            return body
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await request.read()
    except (TimeoutError, ConnectionError, PayloadEncodingError):
        raise BadRequestError("The body did not arrive") from None
