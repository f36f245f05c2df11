"""Every error a client can get, and how it becomes the contract's JSON."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import structlog
from aiohttp import web, web_urldispatcher
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_urldispatcher import _default_expect_handler

from runtime.http import observe
from service_b.api.answers import JsonAnswer

log = structlog.stdlib.get_logger(__name__)

RETRY_AFTER_SECONDS = "5"


class ApiError(Exception):
    """An answer of ours that is not a success; nothing of the request goes into it."""

    code = 500
    message = "Internal provisioning exception"
    headers: ClassVar[Mapping[str, str]] = {}
    errors: Sequence[Mapping[str, Any]] = ()

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON object."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body | {"errors": self.errors} if self.errors else body


class EquipmentNotFoundError(ApiError):
    """The id is no serial, or the task is another device's."""

    code = 404
    message = "The requested equipment is not found"


class TaskNotFoundError(ApiError):
    """There is no such task."""

    code = 404
    message = "The requested task is not found"


class BadRequestError(ApiError):
    """The body cannot be read."""

    code = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CompressedBodyError(ApiError):
    """A compressed body could be a bomb."""

    code = 415
    message = "The body must not be compressed"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class InvalidBodyError(ApiError):
    """The body is JSON, but not what we take; `errors` says what and where."""

    code = 422
    message = "The request is not valid"

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(self.message)
        self.errors = errors


class UnavailableError(ApiError):
    """The database did not answer in time; whether a task was stored is not known."""

    code = 503
    message = "The storage is unavailable, try again"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": RETRY_AFTER_SECONDS}


def json_error(code: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.StreamResponse:
    """Make the answer to a failed request."""
    text = json.dumps(body, separators=(",", ":"))
    return JsonAnswer(code, text.encode(), headers)


@web.middleware
async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer each request and observe the answer.

    What a handler raises becomes JSON: our own errors, aiohttp's, and bugs, which are logged and made opaque. One
    middleware does both: each costs as much as what it does.
    """
    started = time.perf_counter()
    try:
        response = await handler(request)
    except ApiError as error:
        response = json_error(error.code, error.body(), error.headers)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        response = json_error(error.status, {"code": error.status, "message": error.reason}, headers)
    except Exception:
        log.exception("http.bug", method=request.method, route=str(request.match_info.route.resource))
        response = json_error(ApiError.code, ApiError().body())
    observe(request, response.status, time.perf_counter() - started)
    return response


def _answer_malformed(
    handler: RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    """Answer what is not HTTP; `message`, which quotes it, is left out of the answer and of the log."""
    log.info("http.malformed", status=status, error=type(exc).__name__)
    if request.writer.output_size > 0:
        raise ConnectionError("the answer has begun already")
    if isinstance(exc, ContentEncodingError):  # Compressed in a way for which no library is installed.
        status, text = CompressedBodyError.code, CompressedBodyError.message
    else:
        text = "Malformed HTTP request" if status < 500 else ApiError.message
    answer = json_error(status, {"code": status, "message": text})
    answer.force_close()
    return answer


async def _meet_expectation(request: web.Request) -> None:
    """Let a client go on that waits for that; refuse all else that it may expect."""
    try:
        await _default_expect_handler(request)
    except web.HTTPExpectationFailed as error:
        error.body = b'{"code":417,"message":"Expectation Failed"}'
        error.content_type = "application/json"
        raise


# aiohttp answers what is not HTTP, and an `Expect` that it does not know, in plain text, echoes it, and offers no hook
# for that: middlewares come later, and a signal would be sent for each answer.
RequestHandler.handle_error = _answer_malformed  # type: ignore[method-assign, assignment]
web_urldispatcher._default_expect_handler = _meet_expectation  # noqa: SLF001
