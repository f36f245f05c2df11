"""The broker by TLS: whom a session gives its password to, and whom it does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime.settings import read_settings
from runtime.tls import server_context
from tests.certificates import Authority, Pair, files
from tests.conftest import eventually
from tests.proxy import Proxy

SECRET = "hunter2-Secret"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def connecting(broker: BrokerSettings, tls: ssl.SSLContext, **query: Path) -> AsyncIterator[Session]:
    """A session that tries to reach the broker through a proxy that ends TLS."""
    url = broker.nodes[0]
    async with Proxy(url.host or "", url.port or 0, tls) as proxy:
        there = url.with_scheme("amqps").with_host("127.0.0.1").with_port(proxy.url_port)
        there = there.update_query({name: str(path) for name, path in query.items()})
        settings = BrokerSettings.model_validate(broker.model_dump() | {"amqp_url": SecretStr(str(there))})
        async with Session(settings, "test") as session:
            opening = asyncio.create_task(anext(session))
            yield session
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening


async def test_a_verified_broker_is_used_and_sees_our_certificate(broker: BrokerSettings, authority: Authority) -> None:
    tls, us = server_context(files(authority.issue(), authority.file)), authority.issue("us")
    files_of_ours = {"cafile": authority.file, "certfile": us.certificate, "keyfile": us.key}
    async with connecting(broker, tls, **files_of_ours) as session:
        await eventually(lambda: session.unready is None)


DISTRUSTED: dict[str, tuple[Callable[[Authority], Pair], bool, str]] = {
    "another CA": (lambda ca: ca.issue(), False, "unable to get local issuer certificate"),
    "expired": (lambda ca: ca.issue(expired=True), True, "certificate has expired"),
    "another name": (lambda ca: ca.issue("localhost"), True, "IP address mismatch"),
}


@pytest.mark.parametrize("name", DISTRUSTED)
async def test_a_broker_that_is_not_verified_is_not_used(
    name: str, broker: BrokerSettings, authority: Authority, tmp_path: Path
) -> None:
    make, is_ours, why = DISTRUSTED[name]
    believed = authority if is_ours else Authority(tmp_path)
    async with connecting(broker, server_context(files(make(authority))), cafile=believed.file) as session:
        await eventually(lambda: why in (session.unready or ""))


async def test_a_broker_that_asks_for_a_certificate_gets_no_password_without_one(
    broker: BrokerSettings, authority: Authority
) -> None:
    tls = server_context(files(authority.issue(), authority.file))
    async with connecting(broker, tls, cafile=authority.file) as session:
        await eventually(lambda: "not connected yet" not in (session.unready or ""))
        assert session.unready


def refused(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AMQP_URL", url)
    with pytest.raises(SystemExit) as stopped:
        read_settings(BrokerSettings)
    said = str(stopped.value)
    assert SECRET not in said
    assert "\n" not in said
    return said.removeprefix("wrong settings: AMQP_URL: ")


@pytest.mark.parametrize(
    "query", ["no_verify_ssl=1", "no_verify_ssl=0", "no_verify_ssl", "heartbeat=9&no_verify_ssl=1"]
)
@pytest.mark.parametrize("others", ["", "amqp://a/,"])
def test_nothing_turns_the_verification_off(query: str, others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(f"{others}amqps://guest:{SECRET}@a/?{query}", monkeypatch)
    assert said == "each node must be without no_verify_ssl: who answers amqps:// is always verified"


def test_files_are_for_amqps_and_must_be_good(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = authority.issue("us"), authority.issue("us")
    for query, scheme, right in (
        (f"cafile={authority.file}", "amqp", "each node must be amqps:// if it has a cafile, a certfile or a keyfile"),
        ("cafile=/no/such", "amqps", "each cafile: must be a file that can be read (No such file or directory)"),
        (f"cafile={one.key}", "amqps", "each cafile: must be the certificates of CAs, as PEM"),
        (f"certfile={one.certificate}", "amqps", "each keyfile: must be set with each certfile"),
        (
            f"certfile={one.certificate}&keyfile={other.key}",
            "amqps",
            "each certfile: must be PEM, and each keyfile its key, not encrypted (KEY_VALUES_MISMATCH)",
        ),
    ):
        assert refused(f"{scheme}://guest:{SECRET}@a/?{query}", monkeypatch) == right
