"""A broker that was told everything at its start, and what each of our users may do there, on a real RabbitMQ."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ProbableAuthenticationError
from structlog.testing import capture_logs
from yarl import URL

from messaging import declaring
from messaging.definitions import definitions, rights
from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_exchange, dead_letter_queue, exchanges, queues
from tests.system.rabbitmq import RabbitMQ

SETTINGS = BrokerSettings(exchange="of.ours+1", to_configure_queue="to configure", configured_queue="configured.x")
"""Names that a careless regular expression would read otherwise."""
PASSWORDS = {user: f"{user}'s pass:w@rd" for user in rights(SETTINGS)} | {"guest": "guest"}

EXCHANGES = ["", *(exchange.name for exchange in exchanges(SETTINGS)), "ofxours+1"]
QUEUES = [*(queue.name for queue in queues(SETTINGS)), "configuredxx"]
TRIED = [
    *((verb, exchange) for verb in ("publish", "delete exchange") for exchange in EXCHANGES),
    *((verb, queue) for verb in ("read", "purge", "delete", "bind") for queue in QUEUES),
    ("declare", "another"),
    ("declare exchange", "another"),
]
ours, dead = SETTINGS.exchange, dead_letter_exchange(SETTINGS.exchange)
MAY = {
    "web": {("publish", ours)},
    "results": {("publish", dead), *((verb, SETTINGS.configured_queue) for verb in ("read", "purge"))},
    "configurator": {
        ("publish", ours),
        ("publish", dead),
        *((verb, SETTINGS.to_configure_queue) for verb in ("read", "purge")),
    },
}
"""All that each user may do, out of all that is tried."""


async def attempt(amqp: AbstractChannel, verb: str, name: str) -> None:
    match verb:
        case "publish":
            await amqp.basic_publish(b"", exchange=name, routing_key="nobody's")
        case "read":
            await amqp.basic_get(name)
        case "purge":
            await amqp.queue_purge(name)
        case "delete":
            await amqp.queue_delete(name)
        case "bind":
            await amqp.queue_bind(name, SETTINGS.exchange, "x")
        case "delete exchange":
            await amqp.exchange_delete(name)
        case "declare":
            await amqp.queue_declare(name)
        case _:
            await amqp.exchange_declare(name)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("told"), definitions=definitions(SETTINGS, PASSWORDS)) as started:
        yield started


@asynccontextmanager
async def connected(node: RabbitMQ, user: str, password: str | None = None) -> AsyncIterator[aiormq.Connection]:
    url = URL(node.url).with_user(user).with_password(password or PASSWORDS[user])
    connection = await aiormq.connect(url)
    assert isinstance(connection, aiormq.Connection)
    yield connection
    await connection.close()


@pytest.fixture
async def strangers(node: RabbitMQ) -> None:
    """An exchange and a queue that are called nearly as ours."""
    async with connected(node, "guest") as connection:
        amqp = await connection.channel()
        await amqp.exchange_declare(EXCHANGES[-1])
        await amqp.queue_declare(QUEUES[-1])


async def test_all_is_as_a_process_would_have_made_it(node: RabbitMQ) -> None:
    async with connected(node, "guest") as connection:
        with capture_logs() as logs:
            await declaring.ensure(connection, SETTINGS)
        assert logs == []
        amqp = await connection.channel()
        for queue in queues(SETTINGS):
            before = await amqp.queue_declare(queue.name, passive=True)
            await amqp.basic_publish(b"", exchange=queue.exchange, routing_key=queue.key, mandatory=True)
            after = await amqp.queue_declare(queue.name, passive=True)
            assert (after.message_count or 0) - (before.message_count or 0) == 1, "it is not bound"


@pytest.mark.parametrize("user", MAY)
async def test_who_may_do_what(node: RabbitMQ, strangers: None, user: str) -> None:
    may = set()
    async with connected(node, user) as connection:
        for verb, name in TRIED:
            amqp = await connection.channel()
            with suppress(ChannelAccessRefused):
                await attempt(amqp, verb, name)
                may.add((verb, name))
                await amqp.close()
    assert may == MAY[user]


async def test_nobody_comes_in_by_another_password(node: RabbitMQ) -> None:
    for user in MAY:
        for password in (user, "guest", PASSWORDS["guest"], PASSWORDS[user].upper()):
            with pytest.raises(ProbableAuthenticationError):
                async with connected(node, user, password):
                    pass


def test_no_password_is_written_down() -> None:
    written = json.dumps(definitions(SETTINGS, PASSWORDS))
    assert not [password for user, password in PASSWORDS.items() if user in MAY and password in written]
    assert dead_letter_queue(SETTINGS.to_configure_queue) in written
    hashes = {user["password_hash"] for user in definitions(SETTINGS, dict.fromkeys(MAY, "the same"))["users"]}
    assert len(hashes) == len(MAY)
