"""Servers that somebody else has set up, and not as we need them: said at once, and nothing is left running."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import aiormq
import pytest
from yarl import URL

from messaging.settings import BrokerSettings
from tests.system.processes import Process
from tests.system.system import Plan, running


def plan(amqp_url: str | URL, database_url: str | URL, broker: BrokerSettings) -> Plan:
    names = {
        "EXCHANGE": broker.exchange,
        "TO_CONFIGURE_QUEUE": broker.to_configure_queue,
        "CONFIGURED_QUEUE": broker.configured_queue,
    }
    return Plan(
        amqp_url=str(amqp_url),
        database_url=str(database_url),
        service_b=names,
        results=names,
        configurator=names,
    )


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], str]:
    """What whoever starts such a system is told."""
    started = list[Process]()
    start = Process.start

    def note(process: Process, *, wait: bool = True, timeout: float = 90) -> None:
        started.append(process)
        start(process, wait=wait, timeout=timeout)

    monkeypatch.setattr(Process, "start", note)

    def run(plan: Plan) -> str:
        with pytest.raises(RuntimeError) as refused, running(tmp_path, plan):
            pass
        assert not any(process.is_running for process in started)
        return str(refused.value)

    return run


async def test_queues_with_other_arguments_than_ours(
    amqp_url: str,
    database_url: str,
    broker: BrokerSettings,
    amqp: aiormq.abc.AbstractChannel,
    refusal: Callable[[Plan], str],
) -> None:
    await amqp.queue_declare(broker.to_configure_queue, durable=True)
    words = refusal(plan(amqp_url, database_url, broker))
    assert words.startswith("service_b.results is not ready: broker: ")
    assert broker.to_configure_queue in words
    assert "\n" not in words


async def test_a_virtual_host_that_is_not_there(
    amqp_url: str, database_url: str, broker: BrokerSettings, refusal: Callable[[Plan], str]
) -> None:
    words = refusal(plan(URL(amqp_url).with_path("/nowhere"), database_url, broker))
    assert words.startswith("service_b.results is not ready: broker: 530 NOT_ALLOWED - vhost nowhere not found")
    assert "\n" not in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.with_password("wrong"), "password authentication failed"),
        (lambda url: url.update_query(channel_binding="require"), "DATABASE_URL must be without its option channel_bi"),
        (lambda url: url.with_port(1), "connection refused"),
    ],
)
def test_a_database_that_lets_nobody_in(
    amqp_url: str, postgres_url: str, change: Callable[[URL], URL], words: str, refusal: Callable[[Plan], str]
) -> None:
    url = change(URL(postgres_url).with_path(f"/never_{uuid4().hex}"))
    assert words in refusal(plan(amqp_url, url, BrokerSettings()))
