"""A broker that refuses us is quoted, in the log and in readiness: nobody guesses what it did not like."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from messaging.definitions import Rights, definitions
from messaging.frames import Letter
from messaging.session import Session
from messaging.settings import BrokerSettings
from tests.conftest import DEADLINE_SECONDS, eventually
from tests.system.rabbitmq import RabbitMQ

PASSWORD = "hunter2-Secret"
NO_CONNECTION = {"max-connections": 0}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A broker with a user that may do nothing, and a virtual host that lets nobody in."""
    told = definitions(BrokerSettings(), {"guest": "guest", "stranger": PASSWORD, "single": PASSWORD})
    everything, nothing = dict.fromkeys(Rights._fields, ".*"), dict.fromkeys(Rights._fields, "")
    told["vhosts"].append({"name": "full"})
    told["parameters"] = [{"vhost": "full", "component": "vhost-limits", "name": "limits"} | {"value": NO_CONNECTION}]
    told["permissions"] = [
        {"user": "guest", "vhost": "/", **everything},
        {"user": "guest", "vhost": "full", **everything},
        {"user": "single", "vhost": "/", **nothing},
    ]
    next(user for user in told["users"] if user["name"] == "single")["limits"] = NO_CONNECTION
    with RabbitMQ(tmp_path_factory.mktemp("node"), definitions=told) as started:
        yield started


@asynccontextmanager
async def _connecting(node: RabbitMQ, **changes: str) -> AsyncIterator[Session]:
    """A session that goes on trying to connect by another URL than the good one."""
    url = URL(node.url)
    url = url.with_user(changes.get("user", "guest")).with_password(changes.get("password", "guest"))
    settings = BrokerSettings(amqp_url=SecretStr(str(url.with_path(changes.get("path", "/")))))
    async with Session(settings, "test") as session:
        connecting = asyncio.create_task(anext(session))
        yield session
        connecting.cancel()
        await asyncio.wait({connecting})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": PASSWORD}, "403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."),
        ({"path": "/nowhere"}, "530 NOT_ALLOWED - vhost nowhere not found"),
        ({"path": "/full"}, "530 NOT_ALLOWED - access to vhost 'full' refused for user 'guest': connection limit (0)"),
        (
            {"user": "stranger", "password": PASSWORD},
            "530 NOT_ALLOWED - access to vhost '/' refused for user 'stranger'",
        ),
        (
            {"user": "single", "password": PASSWORD},
            "530 NOT_ALLOWED - connection refused for user 'single': user connection limit (0) is reached",
        ),
    ],
)
async def test_a_refused_connection_says_why(node: RabbitMQ, changes: dict[str, str], words: str) -> None:
    with capture_logs() as logs:
        async with _connecting(node, **changes) as session:
            await eventually(lambda: "not connected yet" not in (session.unready or ""))
            assert (session.unready or "").startswith(f"broker: {words}")
    [failed, *_] = [entry for entry in logs if entry["event"] == "amqp.connect_failed"]
    assert failed["error"].startswith(words)
    assert PASSWORD not in str(logs)


async def test_a_server_that_is_not_there_says_so(node: RabbitMQ) -> None:
    settings = BrokerSettings(amqp_url=SecretStr("amqp://guest:guest@127.0.0.1:1/"))
    async with Session(settings, "test") as session:
        connecting = asyncio.create_task(anext(session))
        await eventually(lambda: "not connected yet" not in (session.unready or ""))
        connecting.cancel()
        assert "Connect call failed ('127.0.0.1', 1)" in (session.unready or "")


async def test_a_channel_that_the_broker_closes_says_why(session: Session, broker: BrokerSettings) -> None:
    channel = await anext(session)
    await channel.publish("key", [Letter("1", b"")], exchange="nowhere")
    lost = await asyncio.wait_for(asyncio.shield(channel.lost), DEADLINE_SECONDS)
    assert lost == "closed: 404 NOT_FOUND - no exchange 'nowhere' in vhost '/'"
    assert session.unready == f"broker: {lost}"


async def test_a_subscription_that_is_refused_says_why(session: Session, broker: BrokerSettings) -> None:
    channel = await anext(session)
    await channel.consume("nowhere", 1, lambda _: None)
    assert "404 NOT_FOUND - no queue 'nowhere' in vhost '/'" in await channel.lost


async def test_a_channel_that_is_lost_at_once_is_not_opened_at_once_again(
    session: Session, broker: BrokerSettings
) -> None:
    """As one whose user may not read the queue: twenty connections a second would help nobody."""
    with capture_logs() as logs:
        for _ in range(4):
            channel = await anext(session)
            await channel.consume("nowhere", 1, lambda _: None)
    pauses = [entry["retry_in"] for entry in logs if entry["event"] == "amqp.short_lived"]
    assert len(pauses) == 3
    assert pauses == sorted(pauses)
    assert "404 NOT_FOUND" in (session.unready or "")


async def test_a_connection_that_the_broker_closes_says_why(node: RabbitMQ) -> None:
    settings = BrokerSettings(amqp_url=SecretStr(node.url))
    async with Session(settings, "test") as session:
        channel = await anext(session)
        await asyncio.to_thread(node.ctl, "close_all_connections", "for a test")
        lost = await asyncio.wait_for(asyncio.shield(channel.lost), DEADLINE_SECONDS)
    assert lost.endswith(": 320 CONNECTION_FORCED - for a test")
