"""The stub's HTTPS, as a process; it shares no code with ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from service_a.settings import read_settings
from tests.certificates import Authority, Pair, ask
from tests.conftest import eventually
from tests.system.processes import Process


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue()


@pytest.fixture
async def stub(pair: Pair, tmp_path: Path) -> AsyncIterator[Process]:
    environment = {"TLS_CERT_FILE": str(pair.certificate), "TLS_KEY_FILE": str(pair.key)}
    process = Process("service_a", tmp_path / "logs", environment | {"LOG_FORMAT": "text"})
    process.start(wait=False)
    yield process
    process.close()


async def serial(process: Process, authority: Authority) -> object:
    """Ask whether it lives, and tell its certificate's serial number; None while nobody answers."""
    try:
        said, shown = await ask(process.port, "/health/live", authority.client())
    except OSError:
        return None
    assert b'"status": "alive"' in said
    return shown


async def test_the_certificate_that_is_served_is_the_one_on_disk(
    stub: Process, pair: Pair, authority: Authority
) -> None:
    await eventually(lambda: serial(stub, authority))
    first = await serial(stub, authority)
    # A key that does not belong to the certificate changes nothing.
    authority.issue().key.replace(pair.key)
    await eventually(lambda: "the certificate stays: KEY_VALUES_MISMATCH" in stub.log_file.read_text())
    assert await serial(stub, authority) == first
    pair.replace(authority.issue())

    async def is_new() -> bool:
        return await serial(stub, authority) not in (first, None)

    await eventually(is_new)
    assert f"listening on https://127.0.0.1:{stub.port}" in stub.log_file.read_text()


async def test_nothing_but_tls_is_spoken(stub: Process, authority: Authority) -> None:
    await eventually(lambda: serial(stub, authority))
    reader, writer = await asyncio.open_connection("127.0.0.1", stub.port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
    with suppress(ConnectionError):
        assert b"HTTP" not in await reader.read()
    writer.close()


def test_what_is_no_certificate_ends_the_process_with_one_line(
    authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for certificate, key in (
        (pair.certificate, None),
        (None, pair.key),
        (pair.certificate, authority.issue().key),
        (pair.certificate, pair.certificate),
        (Path("missing"), pair.key),
    ):
        for name, path in (("TLS_CERT_FILE", certificate), ("TLS_KEY_FILE", key)):
            monkeypatch.setenv(name, str(path or ""))
        with pytest.raises(SystemExit, match=r"^wrong settings: TLS_KEY_FILE: must be set with TLS_CERT_FILE, and be"):
            read_settings()
