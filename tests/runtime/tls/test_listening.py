"""How a process listens by TLS: whom it takes, and that its limits hold there, too."""

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from runtime.answers import Answer
from runtime.connections import Limits
from runtime.tls import Reloading, server_context
from tests.certificates import Authority, Pair, files
from tests.clients import Client, requests_at_work, serving
from tests.conftest import eventually
from tests.runtime.tls.test_contexts import LOOK_SECONDS, watching

GET = b"GET /name HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = GET.replace(b"Host", b"Connection: close\r\nHost")
BIG = 16 * 1024 * 1024


def make_app(go_on: asyncio.Event | None = None) -> web.Application:
    async def name(request: web.Request) -> Answer:
        return Answer(200, b'"name"')

    async def big(request: web.Request) -> Answer:
        return Answer(200, b" " * BIG)

    async def slow(request: web.Request) -> Answer:
        assert go_on
        await go_on.wait()
        return Answer(200, b'"slow"')

    app = web.Application()
    app.router.add_get("/name", name)
    app.router.add_get("/big", big)
    app.router.add_get("/slow", slow)
    return app


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue()


@pytest.fixture
def tls(pair: Pair) -> Reloading:
    return Reloading(server_context, files(pair), look_seconds=LOOK_SECONDS)


class Wire:
    """A client's connection, by TLS if it has a context for that."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def serial(self) -> object:
        """The serial number of the server's certificate."""
        return self.writer.get_extra_info("peercert")["serialNumber"]

    async def ask(self, request: bytes = GET, end: bytes = b'"name"') -> bytes:
        """Ask and read the answer, or what there is of it when the server closes."""
        try:
            async with asyncio.timeout(60):
                self.writer.write(request)
                return await self.reader.readuntil(end)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except (ConnectionError, ssl.SSLError):
            return b""

    async def rest(self) -> bytes:
        """Read until the server ends the connection."""
        try:
            async with asyncio.timeout(60):
                return await self.reader.read()
        except (ConnectionError, ssl.SSLError):
            return b""


class Connect:
    """Opens connections that end with the test."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.wires: list[Wire] = []

    async def __call__(self, client: Client, context: ssl.SSLContext | None = None) -> Wire:
        """Connect by TLS."""
        async with asyncio.timeout(60):
            context = context or self.authority.client()
            return self._keep(*await asyncio.open_connection("127.0.0.1", client.port, ssl=context))

    async def plain(self, client: Client, sent: bytes = b"") -> Wire:
        """Connect without TLS."""
        wire = self._keep(*await asyncio.open_connection("127.0.0.1", client.port))
        wire.writer.write(sent)
        return wire

    def _keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Wire:
        self.wires.append(Wire(reader, writer))
        return self.wires[-1]


@pytest.fixture
async def connect(authority: Authority) -> AsyncIterator[Connect]:
    made = Connect(authority)
    yield made
    for wire in made.wires:
        wire.writer.transport.abort()


# Whom it takes


async def test_a_client_that_trusts_us_is_answered(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), tls=tls) as client:
        context = connect.authority.client()
        context.set_alpn_protocols(["h2", "http/1.1"])
        wire = await connect(client, context)
        for _ in range(3):
            assert (await wire.ask()).startswith(b"HTTP/1.1 200")
        assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_are_spoken(connect: Connect, tls: Reloading, version: ssl.TLSVersion) -> None:
    context = connect.authority.client()
    context.maximum_version = version
    async with serving(make_app(), tls=tls) as client:
        assert (await (await connect(client, context)).ask()).endswith(b'"name"')


async def test_an_older_version_is_not_spoken(connect: Connect, tls: Reloading) -> None:
    context = connect.authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(make_app(), tls=tls) as client:
        with capture_logs() as logs:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(client, context)
            await eventually(lambda: logs)
        assert logs[0]["error"] == "TLS: UNSUPPORTED_PROTOCOL"


@pytest.mark.parametrize("sent", [GET, b"SECRET\r\n\r\n", bytes(100)])
async def test_who_speaks_no_tls_is_not_answered_and_named_without_a_word_of_his(
    sent: bytes, connect: Connect, tls: Reloading
) -> None:
    async with serving(make_app(), tls=tls) as client:
        with capture_logs() as logs:
            assert b"HTTP" not in await (await connect.plain(client, sent)).rest()
            await eventually(lambda: logs)
    (line,) = logs
    assert (line["event"], line["log_level"], line["peer"]) == ("http.malformed", "info", "127.0.0.1")
    assert line["error"].startswith("TLS: ")
    assert "SECRET" not in str(line)


async def test_a_client_that_leaves_in_its_handshake_is_no_news(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=1), tls=tls) as client:
        with capture_logs() as logs:
            for sent in (b"", b"\x16\x03\x01"):
                (await connect.plain(client, sent)).writer.close()
            assert (await (await connect(client)).ask()).endswith(b'"name"')
        assert logs == []


async def asks_as(client: Client, connect: Connect, pair: Pair | None) -> bytes:
    """Ask with a certificate of a client's: nothing is answered to one that is refused."""
    try:
        return await (await connect(client, connect.authority.client(pair))).ask()
    except (ssl.SSLError, ConnectionError):
        return b""


async def test_only_clients_of_the_ca_are_taken_where_one_is_named(
    connect: Connect, authority: Authority, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clients = Authority(tmp_path_factory.mktemp("clients"))
    tls = Reloading(server_context, files(pair, clients.file))
    async with serving(make_app(), tls=tls) as client:
        assert (await asks_as(client, connect, clients.issue("client"))).endswith(b'"name"')
        refused = {
            "TLS: PEER_DID_NOT_RETURN_A_CERTIFICATE": None,
            "TLS: CERTIFICATE_VERIFY_FAILED": authority.issue("client"),
            "TLS: CERTIFICATE_VERIFY_FAILED (expired)": clients.issue("client", expired=True),
        }
        for reason, shown in refused.items():
            with capture_logs() as logs:
                assert await asks_as(client, connect, shown) == b""
                await eventually(
                    lambda: sum(entry.get("count", 1) for entry in logs if entry["event"] != "http.dropped")
                )
            assert [entry["error"] for entry in logs if "error" in entry] in ([reason.partition(" (")[0]], [])


# Files that are replaced


async def test_new_connections_get_the_new_certificate_and_those_there_are_go_on(
    connect: Connect, authority: Authority, pair: Pair, tls: Reloading
) -> None:
    go_on = asyncio.Event()
    async with serving(make_app(go_on), tls=tls) as client, watching(tls):
        kept, busy = await connect(client), await connect(client)
        asking = asyncio.create_task(busy.ask(GET.replace(b"name", b"slow"), b'"slow"'))
        await eventually(lambda: requests_at_work() == 1)
        first = tls.context
        pair.replace(authority.issue())
        await eventually(lambda: tls.context is not first)
        new = await connect(client)
        assert (await new.ask()).endswith(b'"name"')
        assert new.serial != kept.serial
        assert (await kept.ask()).endswith(b'"name"')
        go_on.set()
        assert (await asking).endswith(b'"slow"')


async def test_a_ca_that_is_replaced_is_believed_no_more(
    connect: Connect, pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old, new = (Authority(tmp_path_factory.mktemp(name)) for name in ("old", "new"))
    tls = Reloading(server_context, files(pair, old.file), look_seconds=LOOK_SECONDS)
    async with serving(make_app(), tls=tls) as client, watching(tls):
        assert (await asks_as(client, connect, old.issue("client"))).endswith(b'"name"')
        first, shown = tls.context, old.issue("client")
        old.file.write_bytes(new.file.read_bytes())
        await eventually(lambda: tls.context is not first)
        assert await asks_as(client, connect, shown) == b""
        assert (await asks_as(client, connect, new.issue("client"))).endswith(b'"name"')


# What a client may not do for ever


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half a hello"])
async def test_a_handshake_that_is_not_finished_ends(sent: bytes, connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=0.2), tls=tls) as client:
        with capture_logs() as logs:
            assert await (await connect.plain(client, sent)).rest() == b""
            await eventually(lambda: logs)
        assert logs[0]["handshake not finished"] == 1


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half a hello"])
async def test_unfinished_handshakes_keep_nobody_out(sent: bytes, connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=3600), tls=tls) as client:
        for _ in range(30):
            await connect.plain(client, sent)
        assert (await (await connect(client)).ask()).endswith(b'"name"')


@pytest.mark.parametrize(
    "sent", [b"", GET[:-3], GET.replace(b"name", b"big")], ids=["idle", "half a head", "not reading"]
)
async def test_clients_that_hold_on_keep_nobody_out(sent: bytes, connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10), tls=tls) as client:
        for _ in range(20):
            (await connect(client)).writer.write(sent)
            assert (await (await connect(client)).ask()).endswith(b'"name"')


async def test_half_a_head_ends(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, head_seconds=0.5), tls=tls) as client:
        wire = await connect(client)
        wire.writer.write(GET[:-3])
        assert (await wire.rest()).endswith(b'{"code":408,"message":"Request Timeout"}')


async def test_an_answer_that_is_not_taken_ends(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, answer_seconds=0.2), tls=tls) as client:
        with capture_logs() as logs:
            wire = await connect(client)
            wire.writer.write(GET.replace(b"name", b"big"))
            await eventually(lambda: [entry for entry in logs if entry["event"] == "http.dropped"])
        assert logs[-1]["answer not taken"] == 1


async def test_an_answer_that_is_taken_slowly_arrives(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, answer_seconds=5), tls=tls) as client:
        wire = await connect(client)
        wire.writer.write(LAST.replace(b"name", b"big"))
        taken = 0
        while part := await wire.reader.read(BIG // 100):
            taken += len(part)
            await asyncio.sleep(0)
        assert taken > BIG


async def test_an_idle_connection_ends(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), Limits(connections=10, keepalive_seconds=0.5), tls=tls) as client:
        silent, idle = await connect(client), await connect(client)
        assert (await idle.ask()).endswith(b'"name"')
        assert await silent.rest() == await idle.rest() == b""


# What is no HTTP, and what stands behind an upgrade


async def test_malformed_requests_are_told_so_and_not_echoed(connect: Connect, tls: Reloading) -> None:
    async with serving(make_app(), tls=tls) as client:
        with capture_logs() as logs:
            said = await (await connect(client)).ask(b"SECRET\r\n\r\n", b"}")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert "SECRET" not in f"{said!r} {logs}"


async def test_the_request_behind_an_upgrade_is_not_lost(connect: Connect, tls: Reloading) -> None:
    upgrade = b"GET /name HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with serving(make_app(), tls=tls) as client:
        wire = await connect(client)
        wire.writer.write(upgrade + LAST)
        assert (await wire.rest()).count(b'"name"') == 2


# Stopping


async def test_what_is_in_flight_is_finished_and_handshakes_are_not_waited_for(
    connect: Connect, tls: Reloading
) -> None:
    go_on = asyncio.Event()
    stack = serving(make_app(go_on), tls=tls)
    client = await stack.__aenter__()
    slow = await connect(client)
    await connect.plain(client)
    asking = asyncio.create_task(slow.ask(GET.replace(b"name", b"slow"), b'"slow"'))
    await eventually(lambda: requests_at_work() == 1)
    stopping = asyncio.create_task(stack.__aexit__(None, None, None))
    go_on.set()
    assert (await asking).endswith(b'"slow"')
    await stopping
