"""What happens around every handler: its errors become answers, its answers are counted."""

import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from runtime.answers import Answer, json_error
from runtime.http import observe
from service_b.api import problems
from service_b.api.errors import ApiError, MethodNotAllowedError, UnavailableError
from service_b.api.parts import PROBLEMATIC
from service_b.api.sites import refuse_other_sites
from service_b.api.trail import Trail
from service_b.api.waiting import waited_seconds
from service_b.storage import StorageRefusedError, StorageUnavailableError

log = structlog.stdlib.get_logger(__name__)


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
            response = _failure(request, error)
        except StorageUnavailableError:
            response = _failure(request, UnavailableError())
        except StorageRefusedError:
            response = _failure(request, ApiError())
        except web.HTTPMethodNotAllowed as error:
            response = await _wrong_method(request, MethodNotAllowedError(error.headers["Allow"]))
        except web.HTTPException as error:
            response = json_error(error.status, {"code": error.status, "message": error.reason})
        except Exception:
            log.exception("http.bug", method=request.method, route=str(request.match_info.route.resource))
            response = _failure(request, ApiError())
        observe(request, response.status, time.perf_counter() - started - waited_seconds(request))
        if trail is not None:
            trail.note(request, response.status)
        return response

    return observe_and_answer


def _failure(request: web.Request, error: ApiError) -> Answer:
    """Tell of an error as the route's clients expect it."""
    return _tell(error, problem=request.match_info.route.resource in request.app[PROBLEMATIC])


async def _wrong_method(request: web.Request, error: MethodNotAllowedError) -> Answer:
    """Do the same where aiohttp has found no route, only resources of this path."""
    there = [await resource.resolve(request) for resource in request.app[PROBLEMATIC]]
    return _tell(error, problem=any(allowed for _, allowed in there))


def _tell(error: ApiError, *, problem: bool) -> Answer:
    return problems.answer(error) if problem else json_error(error.code, error.body(), error.headers)
