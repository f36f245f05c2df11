"""Requests and their latency, by route and code."""

import time
from functools import lru_cache

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Histogram

REQUESTS = Histogram(
    "http_request_seconds",
    "HTTP requests answered, by route and code",
    ["method", "route", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


@web.middleware
async def observe_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Observe each answer; the outermost middleware, so that it sees what the client sees."""
    started = time.perf_counter()
    response = await handler(request)
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unknown"
    method = request.method if route != "unknown" else "any"
    _observer(method, route, response.status).observe(time.perf_counter() - started)
    return response


@lru_cache(maxsize=1024)
def _observer(method: str, route: str, code: int) -> Histogram:
    """Find a series; `labels` alone takes as long as the rest."""
    return REQUESTS.labels(method, route, code)
