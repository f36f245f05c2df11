"""How a process listens: its ports, its limits against clients that never let go, and how it stops."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from runtime.answers import Answer
from runtime.connections import Limits
from runtime.health import add_health_routes
from runtime.listener import Address, ListenError
from runtime.serving import STOP_SECONDS, listening, serve
from tests.clients import Client, ask_raw, requests_at_work, serving
from tests.conftest import eventually
from tests.system.processes import Module, Process
from tests.system.spawning import free_port

GET = b"GET /name HTTP/1.1\r\nHost: a\r\n\r\n"
BIG = 16 * 1024 * 1024
"""More than the kernel keeps for a client that does not read."""


def make_app(go_on: asyncio.Event | None = None) -> web.Application:
    async def name(request: web.Request) -> Answer:
        return Answer(200, b'"name"')

    async def big(request: web.Request) -> Answer:
        return Answer(200, b" " * BIG)

    async def slow(request: web.Request) -> Answer:
        assert go_on
        await go_on.wait()
        return Answer(200, b'"slow"')

    async def echo(request: web.Request) -> Answer:
        return Answer(200, await request.read())

    app = web.Application()
    app.router.add_get("/name", name)
    app.router.add_get("/big", big)
    app.router.add_get("/slow", slow)
    app.router.add_post("/echo", echo)
    return app


class Wire:
    """A connection whose client decides about every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self) -> bytes:
        """Ask for the name and read the answer; empty, where the server has closed."""
        try:
            self.writer.write(GET)
            return await self.reader.readuntil(b'"name"')
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            return error.partial if isinstance(error, asyncio.IncompleteReadError) else b""

    async def rest(self) -> bytes:
        """Read until the server ends the connection."""
        try:
            async with asyncio.timeout(60):
                return await self.reader.read()
        except ConnectionError:
            return b""


@pytest.fixture
async def connect() -> AsyncIterator["Connect"]:
    made = Connect()
    yield made
    for wire in made.wires:
        wire.writer.transport.abort()


class Connect:
    """Opens connections that end with the test."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []

    async def __call__(self, client: Client, sent: bytes = b"") -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", client.port))
        wire.writer.write(sent)
        self.wires.append(wire)
        return wire


# What a client may not do for ever


async def test_an_idle_connection_ends(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10, keepalive_seconds=0.2)) as client:
        silent, idle = await connect(client), await connect(client)
        assert (await idle.ask()).endswith(b'"name"')
        assert await silent.rest() == await idle.rest() == b""


@pytest.mark.parametrize("is_first", [True, False])
async def test_half_a_head_ends(connect: Connect, is_first: bool) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=0.2)) as client:
        wire = await connect(client)
        if not is_first:
            await wire.ask()
        wire.writer.write(GET[:-3])
        assert (await wire.rest()).endswith(b'{"code":408,"message":"Request Timeout"}')


async def test_a_byte_at_a_time_is_half_a_head(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=0.5)) as client:
        wire = await connect(client, b"GET /")

        reading = asyncio.create_task(wire.rest())

        async def drip() -> bool:
            wire.writer.write(b"n")
            return reading.done()  # At the stream's end or, when a byte was under way, at its reset.

        with capture_logs() as logs:
            await eventually(drip)
            await reading
            await eventually(lambda: logs)
        assert logs[0]["head not sent"] == 1


async def test_an_empty_line_behind_a_request_is_no_half_head(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=0)) as client:
        idle, half = await connect(client, GET + b"\r\n"), await connect(client, GET[:-3])
        await half.rest()
        assert b"408" not in await idle.ask()


async def test_an_answer_that_is_not_taken_ends(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10, answer_seconds=0.2)) as client:
        with capture_logs() as logs:
            wire = await connect(client, GET.replace(b"name", b"big"))
            await eventually(lambda: [entry for entry in logs if entry["event"] == "http.dropped"])
        assert logs[-1]["answer not taken"] == 1
        assert len(await wire.rest()) < BIG


async def test_an_answer_that_is_taken_slowly_arrives(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10, answer_seconds=2)) as client:
        wire = await connect(client, GET.replace(b"name", b"big") + GET.replace(b"Host", b"Connection: close\r\nHost"))
        taken = 0
        while part := await wire.reader.read(BIG // 100):
            taken += len(part)
            await asyncio.sleep(0)
        assert taken > BIG


# How many there may be


async def test_the_longest_waiting_gives_way(connect: Connect) -> None:
    async with serving(make_app(), Limits(connections=10)) as client:
        wires = [await connect(client) for _ in range(10)]
        assert (await wires[0].ask()).endswith(b'"name"')
        eleventh = await connect(client)
        assert (await eleventh.ask()).endswith(b'"name"')
        assert await wires[1].rest() == b""
        assert (await wires[0].ask()).endswith(b'"name"')
        assert (await wires[2].ask()).endswith(b'"name"')


@pytest.mark.parametrize(
    "sent",
    [b"", GET[:-3], b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{", GET.replace(b"name", b"big")],
    ids=["idle", "half a head", "half a body", "not reading"],
)
async def test_clients_that_hold_on_keep_nobody_out(connect: Connect, sent: bytes) -> None:
    async with serving(make_app(), Limits(connections=10)) as client:
        for _ in range(20):
            await connect(client, sent)
            assert (await (await connect(client)).ask()).endswith(b'"name"')


async def test_who_is_being_served_does_not_give_way_and_others_wait_for_a_place(connect: Connect) -> None:
    go_on = asyncio.Event()
    async with serving(make_app(go_on), Limits(connections=5)) as client:
        served = [await connect(client, GET.replace(b"name", b"slow")) for _ in range(5)]
        await eventually(lambda: requests_at_work() == 5)
        waiting = [asyncio.create_task((await connect(client)).ask()) for _ in range(10)]
        assert requests_at_work() == 5
        go_on.set()
        for wire in served:
            assert (await wire.reader.readuntil(b'"slow"')).startswith(b"HTTP/1.1 200")
        for asking in waiting:
            assert (await asking).endswith(b'"name"')


# What is not HTTP


@pytest.mark.parametrize(
    "raw",
    [
        b"SECRET\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET /name\r\n\r\n",
        b"GET /name HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nSECRET\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n\r\n",
    ],
)
async def test_malformed_requests_are_told_so_and_not_echoed(raw: bytes) -> None:
    async with serving(make_app()) as client:
        with capture_logs() as logs:
            head, body = await client.ask_raw(raw)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body == b'{"code":400,"message":"Malformed HTTP request"}'
    (line,) = logs
    assert (line["event"], line["peer"], line["log_level"]) == ("http.malformed", "127.0.0.1", "info")
    assert "SECRET" not in str(logs)


async def test_malformed_requests_are_one_line_and_a_number_a_second() -> None:
    async with serving(make_app()) as client:
        with capture_logs() as logs:
            for _ in range(100):
                await client.ask_raw(b"SECRET\r\n\r\n")
            await eventually(lambda: sum(entry.get("count", 1) for entry in logs) == 100)
    assert len(logs) < 50


@pytest.mark.parametrize(
    "head",
    [
        f"GET /name HTTP/1.1\r\nHost: a\r\nX: {'SECRET' * 2000}\r\n",
        f"GET /name HTTP/1.1\r\nHost: a\r\n{'SECRET' * 2000}: x\r\n",
        f"GET /{'SECRET' * 2000} HTTP/1.1\r\nHost: a\r\n",
        "GET /name HTTP/1.1\r\nHost: a\r\n" + "X: SECRET\r\n" * 200,
    ],
    ids=["value", "name", "path", "lines"],
)
async def test_a_head_that_is_too_large(head: str) -> None:
    async with serving(make_app()) as client:
        told, body = await client.ask_raw(f"{head}\r\n".encode())
    assert told.startswith(b"HTTP/1.1 431 ")
    assert body == b'{"code":431,"message":"Request Header Fields Too Large"}'


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /nowhere HTTP/1.1\r\nHost: a\r\n",
        b"PUT /name HTTP/1.1\r\nHost: a\r\n",
        b"GET /name HTTP/1.1\r\nHost: a\r\nExpect: SECRET\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: a\r\nExpect: SECRET\r\n",
        b"GET /bug HTTP/1.1\r\nHost: a\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n",
        b"GET /health/ready HTTP/1.1\r\nHost: a\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n",
        b"SECRET\r\n",
    ],
)
async def test_no_answer_names_the_server_or_quotes_the_request(raw: bytes) -> None:
    async def bug(request: web.Request) -> Answer:
        raise ZeroDivisionError("SECRET")

    app = make_app()
    app.router.add_get("/bug", bug)
    add_health_routes(app)
    async with serving(app) as client:
        head, body = await client.ask_raw(raw + b"Connection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert b"\nserver" not in head.lower()
    assert b"aiohttp" not in head
    assert b"SECRET" not in head + body


# Requests behind an upgrade

UPGRADE = b"Host: a\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"
LAST = GET.replace(b"Host", b"Connection: close\r\nHost")


def upgrade(protocol: bytes) -> list[bytes]:
    head = UPGRADE % protocol
    return [
        b"GET /name HTTP/1.1\r\n" + head + b"\r\n",
        b"POST /echo HTTP/1.1\r\n" + head + b'Content-Length: 6\r\n\r\n"name"',
        b"POST /echo HTTP/1.1\r\n" + head + b'Transfer-Encoding: chunked\r\n\r\n6\r\n"name"\r\n0\r\n\r\n',
    ]


@pytest.mark.parametrize(
    "first",
    [
        *(raw for protocol in (b"websocket", b"h2c", b"TLS/1.0", b"nonsense") for raw in upgrade(protocol)),
        upgrade(b"h2c")[0].replace(b"Upgrade:", b"uPGRADE:"),
        upgrade(b"h2c")[0] + upgrade(b"websocket")[1] + upgrade(b"websocket")[0],
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_the_request_behind_an_upgrade_is_neither_lost_nor_cut(connect: Connect, first: bytes) -> None:
    async with serving(make_app()) as client:
        told = await (await connect(client, first + LAST)).rest()
        asked = (first + LAST).count(b" HTTP/1.1\r\n")
        assert told.count(b'"name"') == asked - first.startswith(b"CONNECT")
        assert told.count(b"HTTP/1.1 ") == asked


@pytest.mark.parametrize("first", upgrade(b"h2c"))
async def test_wherever_the_network_cuts(connect: Connect, first: bytes) -> None:
    async with serving(make_app()) as client:
        for at in range(1, len(first)):
            wire = await connect(client, first[:at])
            await asyncio.sleep(0.001)  # Not to be sure, but so that most cuts arrive as such.
            wire.writer.write(first[at:] + LAST)
            assert (await wire.rest()).count(b'"name"') == 2


async def test_byte_by_byte(connect: Connect) -> None:
    async with serving(make_app()) as client:
        wire = await connect(client)
        for byte in upgrade(b"h2c")[0][:-1]:
            wire.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        wire.writer.write(b"\n" + LAST)
        assert (await wire.rest()).count(b'"name"') == 2


# Ports


async def test_a_taken_port_names_its_variable() -> None:
    app = make_app()
    async with serving(app) as client:
        with pytest.raises(
            ListenError, match=rf"^SOME_PORT: cannot listen on 127\.0\.0\.1:{client.port}: Address already"
        ):
            async with listening(make_app(), Address("127.0.0.1", client.port, "SOME_PORT"), Limits(connections=1)):
                pass


NOWHERE = {"AMQP_URL": "amqp://127.0.0.1:1", "DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}


@pytest.mark.parametrize(
    ("module", "variable"),
    [("service_b", "APP_PORT"), ("service_b.results", "HEALTH_PORT"), ("configurator", "HEALTH_PORT")],
)
def test_a_process_whose_port_is_taken_ends_with_one_line(tmp_path: Path, module: Module, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        process = Process(module, tmp_path, NOWHERE | {variable: str(port), "LOG_LEVEL": "ERROR"})
        process.start(wait=False)
        assert process.wait() == 1
    lines = process.log_file.read_text().splitlines()
    assert lines == [f"{variable}: cannot listen on 127.0.0.1:{port}: Address already in use"]


async def live(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/health/live") as response:
        return response.status


async def is_alive(url: str) -> bool:
    try:
        return await live(url) == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("module", ["service_b", "service_b.results", "configurator"])
async def test_no_process_echoes_what_is_not_http(tmp_path: Path, module: Module) -> None:
    process = Process(module, tmp_path, NOWHERE)
    process.start(wait=False)
    try:
        await eventually(lambda: is_alive(process.url))
        for raw in (
            b"SECRET\r\n\r\n",
            b"GET /SECRET HTTP/1.1\r\nHost: a\r\nExpect: SECRET\r\nConnection: close\r\n\r\n",
        ):
            head, body = await ask_raw(process.port, raw)
            assert (b"application/json" in head, b"Server:" in head) == (True, False)
            assert b"SECRET" not in body
    finally:
        process.close()
    log = process.log_file.read_text()
    assert "http.malformed" in log
    assert "SECRET" not in log
    assert "Traceback" not in log


async def test_several_processes_share_a_port_where_that_is_wanted(tmp_path: Path) -> None:
    port, own = free_port(), [free_port(), free_port()]
    environment = NOWHERE | {"APP_PORT": str(port), "REUSE_PORT": "true", "HEALTH_HOST": "127.0.0.1"}
    processes = [
        Process("service_b", tmp_path, environment | {"HEALTH_PORT": str(each)}, name=str(each)) for each in own
    ]
    try:
        for process, each in zip(processes, own, strict=True):
            process.start(wait=False)
            await eventually(lambda url=f"http://127.0.0.1:{each}": is_alive(url))
        assert await live(f"http://127.0.0.1:{port}") == 404
        head, _ = await ask_raw(port, b"GET /api/v1/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
    finally:
        codes = [process.terminate() for process in processes]
    assert codes == [0, 0]


# Stopping


async def test_what_is_in_flight_is_finished_and_nothing_new_taken(connect: Connect) -> None:
    go_on = asyncio.Event()
    stack = serving(make_app(go_on))
    client = await stack.__aenter__()
    slow, idle = await connect(client, GET.replace(b"name", b"slow")), await connect(client)
    assert (await idle.ask()).endswith(b'"name"')
    await connect(client, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    await connect(client, GET.replace(b"name", b"big"))
    await eventually(lambda: requests_at_work() == 3)
    with capture_logs() as logs:
        stopping = asyncio.create_task(stack.__aexit__(None, None, None))
        # Nobody waits for clients that let us wait.
        await eventually(lambda: sum(entry.get("stopping", 0) for entry in logs) == 2, STOP_SECONDS / 2)
    assert await idle.rest() == b""
    with pytest.raises(ConnectionError):
        await connect(client)
    go_on.set()
    assert (await slow.rest()).endswith(b'"slow"')
    await stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_amid_a_start_is_not_forgotten_though_a_library_swallows_it(number: signal.Signals) -> None:
    seen: list[str] = []

    def end(serving: asyncio.Task[None]) -> None:
        seen.append("nobody has stopped it")
        serving.cancel()

    async def start(app: web.Application) -> AsyncIterator[None]:
        serving = cast("asyncio.Task[None]", asyncio.current_task())
        asyncio.get_running_loop().call_later(STOP_SECONDS, end, serving)
        signal.raise_signal(number)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        seen.append("started")
        yield
        seen.append("stopped")

    app = make_app()
    app.cleanup_ctx.append(start)
    serve(app, Address("127.0.0.1", 0, "APP_PORT"))
    assert seen == ["started", "stopped"]
