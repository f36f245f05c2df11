"""The HTTP API of the facade."""

import asyncio
import re
from collections.abc import Awaitable
from typing import TypeVar

import asyncpg
import structlog
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from asyncpg.pgproto.pgproto import UUID
from uuid_utils import uuid7

from runtime.batching import Batcher, BatcherFullError
from service_b.api.answers import JsonAnswer
from service_b.api.bodies import parse_request, parse_serial
from service_b.api.errors import (
    RETRY_AFTER_SECONDS,
    ApiError,
    BadRequestError,
    CompressedBodyError,
    EquipmentNotFoundError,
    StorageUnavailableError,
    TaskNotFoundError,
    json_error,
)
from service_b.database import REFUSED_ROW, STORAGE_ERRORS
from service_b.statuses import Statuses
from service_b.tasks.table import NewTask

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_SECONDS = 10.0

CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

RUNNING = b'{"code":204,"message":"Task is still running"}'
COMPLETED = b'{"code":200,"message":"Completed"}'


APP_NAME = web.AppKey("APP_NAME", str)
INSERTS = web.AppKey("INSERTS", Batcher[NewTask, None])
STATUSES = web.AppKey("STATUSES", Statuses)


def add_routes(router: web.UrlDispatcher) -> None:
    """Serve the contract's routes."""
    router.add_get("/api/v1/", tell_name)
    router.add_post("/api/v1/equipment/cpe/{id:[^/]+}", create_task)
    router.add_get("/api/v1/equipment/cpe/{id:[^/]+}/task/{task:[^/]+}", tell_status)


async def tell_name(request: web.Request) -> web.StreamResponse:
    """Tell who answers."""
    return web.json_response(f"{request.app[APP_NAME]} - v1")


async def create_task(request: web.Request) -> web.StreamResponse:
    """Store a task, and answer with its id once it is committed."""
    serial = parse_serial(request.match_info["id"])
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise CompressedBodyError
    wanted = parse_request(await _read(request))
    task_id = UUID(uuid7().bytes)
    task = NewTask(task_id, serial, wanted.timeout_seconds, wanted.parameters)
    await _stored(request.app[INSERTS].submit(task), task_id)
    name = str(task_id)
    return JsonAnswer(
        200,
        b'{"code":200,"taskId":"%s"}' % name.encode(),
        {"Location": f"/api/v1/equipment/cpe/{serial}/task/{name}"},
    )


async def tell_status(request: web.Request) -> web.StreamResponse:
    """Tell what became of a task."""
    serial = parse_serial(request.match_info["id"])
    if not CANONICAL_UUID.fullmatch(request.match_info["task"]):
        raise TaskNotFoundError
    task_id = UUID(request.match_info["task"])
    status = await _stored(request.app[STATUSES].get(task_id), task_id)
    if status is None:
        raise TaskNotFoundError
    if status.equipment_id != serial or status.code == 404:
        raise EquipmentNotFoundError
    if status.code is None:
        return JsonAnswer(200, RUNNING, {"Retry-After": RETRY_AFTER_SECONDS})
    if status.code != 200:
        return json_error(ApiError.code, ApiError().body())
    return JsonAnswer(200, COMPLETED)


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


async def _stored(operation: Awaitable[T], task_id: UUID) -> T:
    """Wait for storage, and turn what it raises into an answer."""
    try:
        return await operation
    except REFUSED_ROW as error:  # A bug: what the schemas let through, the table must take. Its text quotes the row.
        log.error("storage.refused", task_id=str(task_id), error=type(error).__name__)
        raise ApiError from None
    except (*STORAGE_ERRORS, BatcherFullError) as error:
        reason = error.sqlstate if isinstance(error, asyncpg.PostgresError) else ""
        log.warning("storage.unavailable", task_id=str(task_id), error=type(error).__name__, sqlstate=reason)
        raise StorageUnavailableError from None
