"""Where a password is left behind: two systems at work on servers that log what they can, then all files are read.

One seals, the other does not: so what is found of the other shows that this looks in the right places.
"""

import asyncio
import json
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiormq
import asyncpg
import pytest
from pydantic import SecretStr

from messaging.settings import BrokerSettings
from tests.conftest import eventually
from tests.e2e.conftest import GUARDS, PATH, Fleet, in_thread, new_fake_a, open_fleet
from tests.fake_a import FakeA, answer, reset
from tests.queues import count_ready, declare, patient
from tests.seals import make_keys
from tests.system.migrate import Roles, prepare
from tests.system.postgres import PostgreSQL
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ

TALKATIVE = {"log_statement": "all", "log_min_duration_statement": "0"}
WITH_VALUES = {"log_parameter_max_length": "-1", "log_error_verbosity": "verbose"}
"""Not for one's own server unless what is stored is sealed."""

RELATIONS = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'm')"
FILES = """
    SELECT pg_relation_filepath(oid) AS main, pg_relation_filepath(nullif(reltoastrelid, 0)) AS toast
    FROM pg_class WHERE relname ~ '^(task|finished)' AND relkind = 'r'
"""


@dataclass
class Traces:
    """What one of the systems has left behind, where its password was looked for."""

    mark: str
    said: list[str] = field(default_factory=list)
    """Answers, metrics, readiness, and command lines of all processes of this machine."""
    logs: str = ""
    """Our processes'."""
    database_log: str = ""
    dead_letters: list[str] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    """Where a query finds it."""
    table_files: set[str] = field(default_factory=set)
    """The files of the two tables."""
    called: list[Any] = field(default_factory=list)
    """The passwords that service A was asked to set."""
    files: set[str] = field(default_factory=set)
    """Where it was found, of all that the servers wrote: paths below their folder."""

    @property
    def forms(self) -> set[bytes]:
        """The password as it is, and what base64 makes of it: three ways, by where it begins."""
        encoded = (b64encode(bytes(before) + self.mark.encode()) for before in range(3))
        return {self.mark.encode(), *(text[4:-4] for text in encoded)}

    def is_in(self, content: bytes) -> bool:
        """Whether the password is there, in whatever form."""
        return any(form in content for form in self.forms)


def quoting(mark: str) -> str:
    """A text of service A's that has the password in it, in more ways than one."""
    return f'password "{mark}" of {{"password": "{mark}"}} is too short, see /{mark}?p={mark}'


def script(fake_a: FakeA, mark: str) -> None:
    """What service A says of each device: its contract's words, the password's, and nonsense."""
    said = json.dumps({"code": 422, "message": quoting(mark)})
    fake_a.script["REFUSED"] = deque([answer(422, said)])
    fake_a.script["FAILED1"] = deque([answer(500, said.replace("422", "500"))])
    fake_a.script["UNKNOWN"] = deque([answer(404, '{"code":404,"message":"The requested equipment is not found"}')])
    fake_a.script["PROXIED"] = deque([answer(502, f"<h1>{quoting(mark)}</h1>", headers={"X-Said": mark})])
    fake_a.script["BROKEN1"] = deque([reset()])


def command_lines() -> Iterator[str]:
    """How all processes of this machine call themselves."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # It has ended.


async def post(fleet: Fleet, web: Process, traces: Traces, serial: str, status: int, **changed: Any) -> str:
    parameters = {"username": "admin", "password": traces.mark, "interfaces": [1]}
    body = json.dumps({"timeoutInSeconds": 1, "parameters": parameters} | changed)
    async with fleet.client.post(f"{web.url}{PATH}/{serial}", data=body) as response:
        traces.said.append(f"{response.headers} {await response.text()}")
        assert response.status == status
        return response.headers.get("Location", "")


async def spoil_one(fleet: Fleet, amqp: aiormq.abc.AbstractChannel) -> None:
    """Make a message that will be dead-lettered of one that is on its way."""
    queue = fleet.queues.to_configure_queue
    await eventually(lambda: count_ready(amqp, queue))
    message = await amqp.basic_get(queue, no_ack=True)
    await amqp.basic_publish(message.body.replace(b'{"v":', b'{"v":1'), routing_key=queue)


async def work(
    fleet: Fleet, amqp: aiormq.abc.AbstractChannel, traces: Traces, web: Process, own: Mapping[str, str]
) -> None:
    """Take tasks through all that can happen to them, and ask what can be asked."""
    [results] = await fleet.start("service_b.results", LOG_LEVEL="DEBUG")
    paths = [await post(fleet, web, traces, "SPOILED", 200)]
    await spoil_one(fleet, amqp)
    [configurator] = await fleet.start("configurator", LOG_LEVEL="DEBUG", **own)
    devices = ("SUCCESS", "REFUSED", "FAILED1", "UNKNOWN", "PROXIED", "BROKEN1")
    paths += [await post(fleet, web, traces, serial, 200) for serial in devices]
    await post(fleet, web, traces, "REFUSED", 422, parameters={"username": traces.mark, "interfaces": traces.mark})
    await post(fleet, web, traces, traces.mark, 404)
    await post(fleet, web, traces, "SUCCESS", 422, timeoutInSeconds=traces.mark)
    assert await fleet.final_codes(web, paths) == [200, 200, 500, 500, 404, 200, 200]
    dead = f"{fleet.queues.to_configure_queue}.dead"
    await eventually(lambda: count_ready(amqp, dead))
    message = await amqp.basic_get(dead)
    traces.dead_letters.append(f"{message.body.decode()} {message.header.properties.headers}")
    # A row that the table refuses: PostgreSQL quotes it in its error.
    await fleet.sql.execute("ALTER TABLE task ADD CONSTRAINT never CHECK (timeout_seconds <> 14) NOT VALID")
    await post(fleet, web, traces, "SUCCESS", 500, timeoutInSeconds=14)
    for process in (web, results, configurator):
        for path in ("/metrics", "/health/ready"):
            async with fleet.client.get(process.url + path) as response:
                traces.said.append(await response.text())
    traces.said += command_lines()


async def look(sql: asyncpg.Connection, traces: Traces) -> None:
    """Query every table that there is. The mark itself must not be a part of the query, which is logged."""
    await sql.execute("ANALYZE")
    half = len(traces.mark) // 2
    words = f"'{traces.mark[:half]}' || '{traces.mark[half:]}'"
    for row in await sql.fetch(RELATIONS):
        if await sql.fetchval(f"SELECT EXISTS (SELECT FROM {row[0]} AS each WHERE strpos(each::text, {words}) > 0)"):
            traces.tables.add(row[0])
    traces.table_files = {path for row in await sql.fetch(FILES) for path in row.values() if path}


async def run(folder: Path, postgres: PostgreSQL, node: RabbitMQ, traces: Traces, *, seals: bool) -> None:
    """Run one system from its first task to its end."""
    name = "sealed" if seals else "plain"
    roles = Roles(f"migrator_{name}", f"service_{name}")
    url = postgres.dsn("postgres").replace("/postgres", f"/{name}")
    await in_thread(prepare, url, roles)
    web, configurator = dict[str, str](), dict[str, str]()
    if seals:
        keys = make_keys(folder / "keys")
        web, configurator = keys.sealing, {"SEAL_KEY_FILE": str(keys.private)}
    async with AsyncExitStack() as stack:
        fake_a = await stack.enter_async_context(new_fake_a())
        script(fake_a, traces.mark)
        queues = BrokerSettings(
            amqp_url=SecretStr(node.url),
            exchange=name,
            to_configure_queue=f"{name}.to",
            configured_queue=f"{name}.from",
        )
        made = open_fleet(folder / name, queues, url, fake_a, DATABASE_URL=roles.service_url(url))
        fleet = await stack.enter_async_context(made)
        fleet.nursery = None  # The command lines are those of production.
        for setting, value in (TALKATIVE | (WITH_VALUES if seals else {})).items():
            await fleet.sql.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
        connection = await aiormq.connect(patient(queues))
        stack.push_async_callback(connection.close)
        amqp = await connection.channel()
        await declare(amqp, queues)
        [started] = await fleet.start("service_b", LOG_LEVEL="DEBUG", KEEP_PARAMETERS="all", **web)
        await work(fleet, amqp, traces, started, configurator)
        await look(fleet.sql, traces)
        await fleet.close()
        traces.called = [each.body["parameters"]["password"] for each in fake_a.ledger]
        traces.logs = "".join(process.log_file.read_text() for process in fleet.processes)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traces]:
    """Let both systems work on the same servers, stop these, and read all that they have written."""
    folder = tmp_path_factory.mktemp("marked")
    servers = folder / "servers"
    made = {"sealed": Traces("Hunter2-Sealed-Secret"), "plain": Traces("Hunter2-Plain-Secret")}
    postgres = PostgreSQL(servers / "postgres")
    with postgres, RabbitMQ(servers / "rabbitmq") as node:

        async def both() -> None:
            await asyncio.gather(
                run(folder, postgres, node, made["sealed"], seals=True),
                run(folder, postgres, node, made["plain"], seals=False),
            )

        asyncio.run(both())
    for each in made.values():
        each.database_log = postgres.log_file.read_text()
    for file in servers.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for each in made.values():
                if each.is_in(content):
                    each.files.add(str(file.relative_to(servers)))
    return made


@pytest.mark.parametrize("name", ["sealed", "plain"])
def test_nobody_but_service_a_is_told(traces: dict[str, Traces], name: str) -> None:
    found = traces[name]
    assert len(found.called) == 9
    assert set(found.called) == {found.mark}
    told = [line for line in [*found.said, *found.logs.splitlines()] if found.is_in(line.encode())]
    assert told == []
    assert 'password \\"***\\" of' in found.logs, "service A quoted it"
    assert "storage.refused" in found.logs
    assert "amqp.dead_letter" in found.logs


def test_sealed_it_is_found_nowhere(traces: dict[str, Traces]) -> None:
    found = traces["sealed"]
    assert found.files == set()
    assert found.tables == set()
    assert '"sealed\\":\\"1.' in found.dead_letters[0]
    assert '{"sealed":"1.' in found.database_log, "it tells what it was sent"
    assert not found.is_in("".join(found.dead_letters).encode())


@pytest.mark.skipif(bool(GUARDS.secrets("service_b")), reason="with all guards on, these parameters are sealed, too")
def test_else_it_is_in_its_two_tables_and_its_messages_only(traces: dict[str, Traces]) -> None:
    found = traces["plain"]
    assert found.tables
    assert {table.rstrip("0123456789") for table in found.tables} <= {"task", "finished_"}
    assert found.mark in found.dead_letters[0]
    data = {f"postgres/data/{path}" for path in found.table_files}
    elsewhere = {
        file
        for file in found.files
        if file not in data and not file.startswith(("postgres/data/pg_wal/", "rabbitmq/data/"))
    }
    assert elsewhere == set()
    assert found.files & data
    assert any(file.startswith("postgres/data/pg_wal/") for file in found.files)
    assert any(file.startswith("rabbitmq/data/") for file in found.files)
