"""What is not HTTP, or expects what we cannot do: aiohttp answers it in plain text and echoes it."""

import structlog
from aiohttp import web, web_urldispatcher
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_urldispatcher import _default_expect_handler

from service_b.api.answers import json_error
from service_b.api.errors import ApiError, CompressedBodyError

log = structlog.stdlib.get_logger(__name__)


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
