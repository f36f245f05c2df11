"""What happens around every handler: its errors become answers, its answers are counted."""

import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from runtime.answers import json_error
from runtime.http import observe
from service_b.api.errors import ApiError, UnavailableError
from service_b.api.sites import refuse_other_sites
from service_b.storage import StorageRefusedError, StorageUnavailableError

log = structlog.stdlib.get_logger(__name__)

MESSAGES = {413: "Request Entity Too Large"}
"""Python 3.13 gave this code another name; a client reads the same words from every version."""


@web.middleware
async def observe_and_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer each request and observe the answer.

    What a handler raises becomes JSON: our own errors, aiohttp's, and bugs, which are logged and made opaque. One
    middleware, not two: entering one costs about as much as its work (tests/bench/NOTES.md).
    """
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
    return response
