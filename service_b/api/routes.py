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
)
from service_b.statuses import Statuses
from service_b.submission import Submission

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_SECONDS = 10.0

CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

RUNNING = b'{"code":204,"message":"Task is still running"}'
COMPLETED = b'{"code":200,"message":"Completed"}'


APP_NAME = web.AppKey("APP_NAME", str)
SUBMISSION = web.AppKey("SUBMISSION", Submission)
STATUSES = web.AppKey("STATUSES", Statuses)


def add_routes(router: web.UrlDispatcher) -> None:
    """Serve the contract's routes."""
    router.add_get("/api/v1/", tell_name)
    router.add_post("/api/v1/equipment/cpe/{id:[^/]+}", create_task)
    router.add_get("/api/v1/equipment/cpe/{id:[^/]+}/task/{task:[^/]+}", tell_status)


async def tell_name(request: web.Request) -> web.StreamResponse:
    """Tell who answers."""
    return Answer(200, json.dumps(f"{request.app[APP_NAME]} - v1").encode())


async def create_task(request: web.Request) -> web.StreamResponse:
    """Store a task, and answer with its id once it is committed."""
    serial = parse_serial(request.match_info["id"])
    if _is_compressed(request.headers):
        raise CompressedBodyError
    wanted = parse_request(await _read(request))
    name = str(await request.app[SUBMISSION].submit(serial, wanted.timeout_seconds, wanted.parameters))
    return Answer(
        200,
        b'{"code":200,"taskId":"%s"}' % name.encode(),
        {"Location": f"/api/v1/equipment/cpe/{serial}/task/{name}"},
    )


async def tell_status(request: web.Request) -> web.StreamResponse:
    """Tell what became of a task."""
    serial = parse_serial(request.match_info["id"])
    if not CANONICAL_UUID.fullmatch(request.match_info["task"]):
        raise TaskNotFoundError
    status = await request.app[STATUSES].get(request.match_info["task"])
    if status is None:
        raise TaskNotFoundError
    if status.equipment_id != serial or status.code == 404:
        raise EquipmentNotFoundError
    if status.code is None:
        return Answer(200, RUNNING, {"Retry-After": str(RETRY_AFTER_SECONDS)})
    if status.code != 200:
        return json_error(ApiError.code, ApiError().body())
    return Answer(200, COMPLETED)


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
