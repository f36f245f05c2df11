"""How a process is watched: its log lines, its health routes and its metrics."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp.plugin import AiohttpClient

from runtime import health
from runtime.health import Check, add_health_routes
from runtime.logs import configure_logs
from runtime.settings import ProcessSettings
from service_b.api.middleware import observe_and_answer

SECRET = "hunter2-Secret"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Format = Literal["json", "text"]
Client = TestClient[web.Request, web.Application]


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:  # type: ignore[explicit-override]  # typing's is of 3.12
        return True


Lines = Callable[[], list[str]]
Start = Callable[..., Lines]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Configure the logs as a process does, and give a function that tells the lines."""
    root, aiormq = logging.getLogger(), logging.getLogger("aiormq")
    handlers, level, aiormq_level = root.handlers[:], root.level, aiormq.level
    root.handlers = []

    def configure(level: Level = "INFO", log_format: Format | None = "json", *, terminal: bool = False) -> Lines:
        stream = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs(ProcessSettings(log_level=level, log_format=log_format))
        structlog.configure(cache_logger_on_first_use=False)
        return lambda: stream.getvalue().splitlines()

    yield configure
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    aiormq.setLevel(aiormq_level)


def fail(password: str) -> None:
    raise ValueError("the cause")


def log_an_exception(logger: Any, **fields: object) -> None:
    try:
        fail(SECRET)
    except ValueError:
        logger.exception("thing.bug", **fields)


def test_a_json_line_holds_the_event_and_its_fields(start: Start) -> None:
    lines = start()
    structlog.stdlib.get_logger("some.module").info("task.stored", task_id="1", size=2, odd=ValueError("ü"))
    (line,) = map(json.loads, lines())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "task.stored",
        "level": "info",
        "logger": "some.module",
        "task_id": "1",
        "size": 2,
        "odd": "ü",
    }


def test_a_record_of_a_library_is_a_json_line_too(start: Start) -> None:
    lines = start()
    logging.getLogger("library").warning("lost %d of %s", 3, "them")
    (line,) = map(json.loads, lines())
    assert (line["event"], line["level"], line["logger"]) == ("lost 3 of them", "warning", "library")


@pytest.mark.parametrize("logger", [structlog.stdlib.get_logger("ours"), logging.getLogger("library")])
def test_an_exception_is_one_json_line_with_its_traceback(start: Start, logger: Any) -> None:
    lines = start()
    log_an_exception(logger)
    (line,) = map(json.loads, lines())
    assert (line["event"], line["level"]) == ("thing.bug", "error")
    assert "in fail" in line["exception"]
    assert line["exception"].endswith("ValueError: the cause")


@pytest.mark.parametrize("logger", [structlog.stdlib.get_logger("ours"), logging.getLogger("library")])
@pytest.mark.parametrize("terminal", [True, False])
def test_text_is_for_people_and_shows_no_local_variable(start: Start, logger: Any, terminal: bool) -> None:
    lines = start("INFO", "text", terminal=terminal)
    log_an_exception(logger)
    text = "\n".join(lines())
    assert "thing.bug" in text
    assert "ValueError: the cause" in text
    assert SECRET not in text
    assert ("\x1b[" in text) == terminal
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(lines()[0])


@pytest.mark.parametrize("terminal", [True, False])
def test_without_a_format_a_terminal_gets_text_and_the_rest_json(start: Start, terminal: bool) -> None:
    lines = start("INFO", None, terminal=terminal)
    structlog.stdlib.get_logger("ours").info("thing.done")
    assert lines()[0].startswith("{") != terminal


@pytest.mark.parametrize(
    ("level", "seen"),
    [("DEBUG", ["debug", "info", "error"]), ("INFO", ["info", "error"]), ("ERROR", ["error"])],
)
def test_the_level_holds_for_ours_and_for_the_libraries(start: Start, level: Level, seen: list[str]) -> None:
    lines = start(level)
    loggers: list[Any] = [structlog.stdlib.get_logger("ours"), logging.getLogger("library")]
    for logger in loggers:
        logger.debug("debug")
        logger.info("info")
        logger.error("error")
    assert [json.loads(line)["event"] for line in lines()] == seen * 2


def test_aiormq_does_not_tell_of_each_loss_besides_us(start: Start) -> None:
    lines = start("DEBUG")
    logging.getLogger("aiormq.connection").error("lost")
    assert lines() == []


async def ask(aiohttp_client: AiohttpClient, *checks: Check) -> tuple[int, Any]:
    app = web.Application()
    add_health_routes(app, *checks)
    client = await aiohttp_client(app)
    assert (await client.get("/health/live")).status == 200
    response = await client.get("/health/ready")
    return response.status, await response.json()


def missing(phrase: str | None) -> Check:
    async def check() -> str | None:
        return phrase

    return check


async def hang() -> str | None:
    await asyncio.Event().wait()
    return None


async def test_alive_is_said_in_json(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    add_health_routes(app, missing("everything"))
    response = await (await aiohttp_client(app)).get("/health/live")
    assert (response.status, await response.json()) == (200, {"status": "alive"})


async def test_ready_when_nothing_is_missing(aiohttp_client: AiohttpClient) -> None:
    assert await ask(aiohttp_client, missing(None), missing(None)) == (200, {"status": "ready"})


async def test_not_ready_says_all_that_is_missing(aiohttp_client: AiohttpClient) -> None:
    answer = await ask(aiohttp_client, missing("broker: away"), missing(None), missing("database: away"))
    assert answer == (503, {"status": "not ready", "missing": ["broker: away", "database: away"]})


async def test_a_check_that_hangs_is_told_and_holds_up_no_other(
    aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.05)
    async with asyncio.timeout(60):
        answer = await ask(aiohttp_client, hang, missing("broker: away"))
    assert answer == (503, {"status": "not ready", "missing": ["a check did not end in time", "broker: away"]})


async def test_metrics_are_in_prometheus_text_format(aiohttp_client: AiohttpClient) -> None:
    app = web.Application()
    add_health_routes(app)
    response = await (await aiohttp_client(app)).get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert {"http_request_seconds", "python_info", "process_open_fds"} <= names


@pytest.fixture
async def observed(aiohttp_client: AiohttpClient) -> Client:
    async def tell_code(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]))

    app = web.Application(middlewares=[observe_and_answer])
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
