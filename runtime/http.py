"""Requests and their latency, by route and code."""

from functools import lru_cache

from aiohttp import web
from aiohttp.web_urldispatcher import AbstractResource
from prometheus_client import Histogram

REQUESTS = Histogram(
    "http_request_seconds",
    "HTTP requests answered, by route and code",
    ["method", "route", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


def observe(request: web.Request, code: int, seconds: float) -> None:
    """Count an answer that has been made, by the code and the latency that its client sees (less what it asked for)."""
    _observer(request.method, request.match_info.route.resource, code).observe(seconds)


@lru_cache(maxsize=1024)
def _observer(method: str, resource: AbstractResource | None, code: int) -> Histogram:
    """Find a series; `labels` alone takes as long as the rest. What no route serves makes no labels of its own."""
    if resource is None:
        return REQUESTS.labels("any", "unknown", code)
    return REQUESTS.labels(method, resource.canonical, code)
