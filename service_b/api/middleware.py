"""What happens around every handler: its errors become answers, its answers are counted."""

import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from runtime.answers import json_error
from runtime.http import observe
from service_b.api.errors import ApiError, UnavailableError
from service_b.api.sites import refuse_other_sites
from service_b.api.trail import Trail
from service_b.storage import StorageRefusedError, StorageUnavailableError

log = structlog.stdlib.get_logger(__name__)

MESSAGES = {413: "Request Entity Too Large"}
"""Python 3.13 gave this code another name; a client reads the same words from every version."""


def observing(trail: Trail | None = None) -> Middleware:
    """Make the middleware that answers each request and observes the answer; with a trail, acts are noted in it.

    What a handler raises becomes JSON: our own errors, aiohttp's, and bugs, which are logged and made opaque. One
    middleware, not two: entering one costs about as much as its work (tests/bench/NOTES.md).
    """

    @web.middleware
    async def observe_and_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        try:
            refuse_other_sites(request.headers)
            response = await handler(request)
        except ApiError as error:
            response = json_error(error.code, error.body(), error.headers)
        except StorageUnavailableError:
            response = json_error(UnavailableError.code, UnavailableError().body(), UnavailableError.headers)
        except StorageRefusedError:
            response = json_error(ApiError.code, ApiError().body())
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            message = MESSAGES.get(error.status, error.reason)
            response = json_error(error.status, {"code": error.status, "message": message}, headers)
        except Exception:
            log.exception("http.bug", method=request.method, route=str(request.match_info.route.resource))
            response = json_error(ApiError.code, ApiError().body())
        observe(request, response.status, time.perf_counter() - started)
        if trail is not None:
            trail.note(request, response.status)
        return response

    return observe_and_answer
