"""What is said to something that is no HTTP: nothing of it, neither to its sender nor in the log."""

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger("service_a")

_handle_error = web.RequestHandler.handle_error


class Nameless(web.Response):
    """A JSON answer that does not name the server's software; the app's signals do not reach this one."""

    async def _prepare_headers(self) -> None:  # type: ignore[explicit-override]  # typing's is of 3.12
        await super()._prepare_headers()
        del self.headers["Server"]


def quote_nothing() -> None:
    """Make aiohttp answer what is no HTTP in A's words; it has no public hook for that."""
    web.RequestHandler.handle_error = _answer  # type: ignore[method-assign]


def _answer(
    self: web.RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,
) -> web.StreamResponse:
    if status != HTTPStatus.BAD_REQUEST or not isinstance(exc, HttpProcessingError):
        return _handle_error(self, request, status, exc, message)
    log.debug("no HTTP from %s", request.remote)
    refusal = Nameless(
        status=status, text='{"code": 400, "message": "The request is malformed"}', content_type="application/json"
    )
    refusal.force_close()
    return refusal
