"""How requests are counted."""

from collections.abc import Awaitable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY
from pytest_aiohttp.plugin import AiohttpClient

from service_b.api.middleware import observing
from service_b.api.parts import PROBLEMATIC

SECRET = "hunter2-Secret"

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def observed(aiohttp_client: AiohttpClient) -> Client:
    async def tell_code(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]))

    app = web.Application(middlewares=[observing()])
    app[PROBLEMATIC] = frozenset()
    app.router.add_get("/observed/{code}", tell_code)
    return await aiohttp_client(app)


def counted() -> dict[tuple[str, ...], float]:
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["code"]): sample.value
        for family in REGISTRY.collect()
        if family.name == "http_request_seconds"
        for sample in family.samples
        if sample.name.endswith("_count")
    }


async def newly_counted(request: Awaitable[object]) -> dict[tuple[str, ...], float]:
    before = counted()
    await request
    return {key: value - before.get(key, 0) for key, value in counted().items() if value != before.get(key, 0)}


async def test_requests_are_counted_by_route_and_code(observed: Client) -> None:
    route = "/observed/{code}"
    assert await newly_counted(observed.get("/observed/200")) == {("GET", route, "200"): 1}
    assert await newly_counted(observed.get("/observed/503")) == {("GET", route, "503"): 1}
    assert await newly_counted(observed.head("/observed/200")) == {("HEAD", route, "200"): 1}


async def test_unknown_routes_and_methods_make_no_labels_of_their_own(observed: Client) -> None:
    for request in (
        observed.get(f"/{SECRET}"),
        observed.get(f"/observed/{SECRET}/more"),
        observed.post("/observed/200"),
        observed.request("PROPFIND", "/observed/200"),
    ):
        (label,) = await newly_counted(request)
        assert label in {("any", "unknown", "404"), ("any", "unknown", "405")}


async def test_a_bug_is_counted_as_what_the_client_sees(observed: Client) -> None:
    assert await newly_counted(observed.get("/observed/abc")) == {("GET", "/observed/{code}", "500"): 1}
