"""Whatever comes in, over HTTP or from a queue, nothing of ours breaks, and nothing is stored that was refused."""

import asyncio
import contextlib
import http.client
import json
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import aiormq
import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp.commands import Basic

from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_queue
from tests.chaos.messages import rubbish
from tests.conftest import DEADLINE_SECONDS, eventually, new_database
from tests.fake_a import FakeA
from tests.system.processes import Process
from tests.system.spawning import free_port

EXPECTED = {200, 400, 404, 405, 413, 415, 422}
"""Without 503: storage is well."""
BODY = {"timeoutInSeconds": 14, "parameters": {"username": "admin", "password": "admin", "interfaces": [1, 2]}}

quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@dataclass
class Web:
    """A web process under fuzz, and how many tasks it has accepted."""

    process: Process
    accepted: int = 0

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=DEADLINE_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def send(self, raw: bytes) -> bytes:
        address = ("127.0.0.1", self.process.port)
        with socket.create_connection(address, 10) as connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        return b""


async def _count(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval("SELECT (SELECT count(*) FROM task) + (SELECT count(*) FROM finished)")
        return count
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def web(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A web process without a broker; at the end its rows are counted and its log is read."""
    with asyncio.Runner() as runner:
        database = new_database(postgres_url, template)
        url = runner.run(database.__aenter__())
        environment = {"DATABASE_URL": url, "AMQP_URL": f"amqp://127.0.0.1:{free_port()}"}
        with Process("service_b", tmp_path_factory.mktemp("fuzz"), environment) as process:
            fuzzed = Web(process)
            yield fuzzed
            stored = runner.run(_count(url))
            log = process.log_file.read_text()
        runner.run(database.__aexit__(None, None, None))
    assert stored == fuzzed.accepted
    assert [line for line in log.splitlines() if "Traceback" in line or '"level": "error"' in line] == []


def check(web: Web, answer: tuple[int, bytes], method: str) -> None:
    status, body = answer
    assert status in EXPECTED, (status, body)
    if method == "HEAD":
        return
    said = json.loads(body)
    if status == 200 and isinstance(said, dict) and "taskId" in said:
        web.accepted += 1
    elif isinstance(said, dict):
        assert said["code"] in (status, 204)
        assert isinstance(said["message"], str)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "timeoutInSeconds": st.integers(-1, 4000) | anything,
        "parameters": anything
        | st.fixed_dictionaries(
            {"username": st.text(), "password": st.text(), "interfaces": st.lists(st.integers(-1, 2**70), max_size=5)},
            optional={"vlan": st.integers(-1, 5000) | anything, "more": anything},
        ),
        "unknown": anything,
    },
)
bodies = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda value: json.dumps(value).encode(), anything),
    st.builds(lambda value: json.dumps(value).encode(), fields),
    st.builds(
        lambda value, at, byte: _spoil(json.dumps(value).encode(), at, byte), fields, st.integers(0), st.binary()
    ),
)
serials = st.from_regex("[a-zA-Z0-9]{6,20}", fullmatch=True) | st.text(max_size=20).map(lambda text: quote(text, ""))


def _spoil(body: bytes, at: int, byte: bytes) -> bytes:
    at %= len(body)
    return body[:at] + byte[:1] + body[at + 1 :]


@quick
@given(serial=serials, body=bodies, kind=st.sampled_from(["application/json", "text/plain", "", "multipart/form-data"]))
def test_any_body_is_taken_or_refused(web: Web, serial: str, body: bytes, kind: str) -> None:
    answer = web.ask("POST", f"/api/v1/equipment/cpe/{serial}", body, {"Content-Type": kind})
    check(web, answer, "POST")


@quick
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    segments=st.lists(serials, max_size=3),
    prefix=st.sampled_from(["/", "/api/v1/", "/api/v1/equipment/cpe/", "/api/v1/equipment/cpe/ABC1234/task/"]),
)
def test_any_path_is_answered(web: Web, method: str, prefix: str, segments: list[str]) -> None:
    check(web, web.ask(method, prefix + "/".join(segments), b"", {}), method)


@quick
@given(
    encoding=st.sampled_from(["gzip", "deflate", "br", "identity", "x", "gzip, identity", "\x7f"]),
    body=st.binary(max_size=100),
)
def test_any_encoding_is_refused_or_judged(web: Web, encoding: str, body: bytes) -> None:
    check(web, web.ask("POST", "/api/v1/equipment/cpe/ABC1234", body, {"Content-Encoding": encoding}), "POST")


@quick
@given(
    start=st.sampled_from([b"", b"POST /api/v1/equipment/cpe/ABC1234 HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes_break_nothing(web: Web, start: bytes, rest: bytes) -> None:
    assert not web.send(start + rest).startswith((b"HTTP/1.1 5", b"HTTP/1.0 5"))


async def test_rubbish_in_the_queues_stops_nobody(
    database_url: str, broker: BrokerSettings, amqp: aiormq.abc.AbstractChannel, fake_a: FakeA, tmp_path: Path
) -> None:
    rng = random.Random(3)
    environment: dict[str, str] = {
        "AMQP_URL": str(broker.nodes[0]),
        "DATABASE_URL": database_url,
        "EXCHANGE": broker.exchange,
        "TO_CONFIGURE_QUEUE": broker.to_configure_queue,
        "CONFIGURED_QUEUE": broker.configured_queue,
        "SERVICE_A_URL": fake_a.url,
    }
    results_port = str(free_port())
    async with contextlib.AsyncExitStack() as stack:
        processes: dict[str, Process] = {}
        for module in ("service_b", "service_b.results", "configurator"):
            own = {"service_b.results": {"HEALTH_PORT": results_port}}.get(module, {})
            process = Process(module, tmp_path, environment | {"RESULTS_URL": f"http://127.0.0.1:{results_port}"} | own)
            stack.callback(process.close)
            await asyncio.to_thread(process.start)
            processes[module] = process
        rubbish_count = 200
        for _ in range(rubbish_count):
            for key in (broker.to_configure_key, broker.configured_key):
                await amqp.basic_publish(
                    rubbish(rng),
                    exchange=broker.exchange,
                    routing_key=key,
                    properties=Basic.Properties(headers={"x-anything": rng.choice((1, "text", None))}),
                )

        async def dead(queue: str) -> int:
            return (await amqp.queue_declare(dead_letter_queue(queue), passive=True)).message_count or 0

        async with aiohttp.ClientSession(processes["service_b"].url) as http:
            async with http.post("/api/v1/equipment/cpe/ABC1234", json=BODY) as response:
                location = response.headers["Location"]

            async def completed() -> bool:
                async with http.get(location) as response:
                    answer: Any = await response.json()
                    return bool(answer["code"] == 200)

            await eventually(completed)
        for queue in (broker.to_configure_queue, broker.configured_queue):

            async def all_dead(queue: str = queue) -> bool:
                return await dead(queue) == rubbish_count

            await eventually(all_dead)
        for process in processes.values():
            assert process.is_running
            assert "Traceback" not in process.log_file.read_text()
