"""The web process by TLS: its public port speaks nothing else, its watchers' port stays as it is."""

import asyncio
import re
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.settings import read_settings
from service_b.settings import Settings
from tests.certificates import Authority, ask
from tests.conftest import eventually
from tests.runtime.test_serving import NOWHERE, is_alive
from tests.system.processes import Process
from tests.system.spawning import free_port


async def test_the_public_port_speaks_tls_and_its_files_are_followed(authority: Authority, tmp_path: Path) -> None:
    pair, health = authority.issue(), free_port()
    client = authority.client(authority.issue("client"))
    environment = NOWHERE | {
        "HEALTH_HOST": "127.0.0.1",
        "HEALTH_PORT": str(health),
        "TLS_CERT_FILE": str(pair.certificate),
        "TLS_KEY_FILE": str(pair.key),
        "TLS_CLIENT_CA_FILE": str(authority.file),
    }
    process = Process("service_b", tmp_path / "logs", environment)
    process.start(wait=False)
    try:
        await eventually(lambda: is_alive(f"http://127.0.0.1:{health}"))
        said, first = await ask(process.port, "/api/v1/", client)
        assert said.endswith(b'"SERVICE_B - v1"')
        with suppress(OSError):
            assert (await ask(process.port, "/api/v1/", authority.client()))[0] == b""
        assert not await is_alive(f"http://127.0.0.1:{process.port}")
        pair.replace(authority.issue())

        async def is_new() -> bool:
            return (await ask(process.port, "/api/v1/", client))[1] != first

        await eventually(is_new)
    finally:
        assert await asyncio.to_thread(process.terminate) == 0
    log = process.log_file.read_text()
    assert "tls.reloaded" in log
    assert "Traceback" not in log


def test_what_is_no_certificate_ends_the_process_with_one_line(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.issue()
    for variable, path in (
        ("TLS_CERT_FILE", authority.file),
        ("TLS_KEY_FILE", Path("missing")),
        ("TLS_CLIENT_CA_FILE", pair.key),
    ):
        right = {"TLS_CERT_FILE": pair.certificate, "TLS_KEY_FILE": pair.key, "TLS_CLIENT_CA_FILE": authority.file}
        for name, value in (right | {variable: path}).items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(SystemExit) as stopped:
            read_settings(Settings)
        assert re.fullmatch(rf"wrong settings: {variable}: must be [^\n]+", str(stopped.value))
    for variable in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"):
        for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv(variable, str(pair.certificate))
        with pytest.raises(SystemExit, match=r"^wrong settings: TLS_[A-Z]+_FILE: must be set with TLS_[A-Z_]+_FILE$"):
            read_settings(Settings)
