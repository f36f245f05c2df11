"""PostgreSQL by TLS: whom service B gives its password to, and whom it does not."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from yarl import URL

from runtime.settings import read_settings
from runtime.tls import server_context
from service_b.database import STORAGE_ERRORS, DatabaseSettings, connect, create_pool
from service_b.tasks import readiness
from tests.certificates import Authority, Pair, files
from tests.system.tls_front import TlsFront


class Server:
    """PostgreSQL behind a server's TLS, which takes clients of one CA only."""

    def __init__(self, postgres_url: str, folder: Path) -> None:
        self.authority = Authority(folder)
        self._plain = URL(postgres_url)
        self.front = TlsFront(self.context(self.authority.issue()), self._plain.port or 0)

    def context(self, pair: Pair) -> ssl.SSLContext:
        """What a server with this certificate speaks."""
        return server_context(files(pair, self.authority.file))

    def url(self, *, ca: Path | None = None, client: Pair | None = None) -> str:
        """Where it is for somebody who verifies it, and shows a certificate if he has one."""
        query = {"sslmode": "verify-full", "sslrootcert": str(ca or self.authority.file)}
        if client:
            query |= {"sslcert": str(client.certificate), "sslkey": str(client.key)}
        return str(self._plain.with_host("127.0.0.1").with_port(self.front.port).update_query(query))


@pytest.fixture
def server(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(postgres_url, tmp_path_factory.mktemp("tls"))
    with made.front:
        yield made


def settings_of(url: str) -> DatabaseSettings:
    return DatabaseSettings(database_url=SecretStr(url), pool_size=1)


async def why_not(url: str) -> str:
    """Tell why there is no connection; nothing where there is one."""
    try:
        connection = await connect(settings_of(url))
    except STORAGE_ERRORS as error:
        return str(error)
    await connection.close()
    return ""


async def test_a_verified_server_is_used(server: Server) -> None:
    url = server.url(client=server.authority.issue("us"))
    async with create_pool(settings_of(url)) as pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert await why_not(url) == ""


async def test_a_server_of_another_ca_is_not_used(server: Server, tmp_path: Path) -> None:
    url = server.url(ca=Authority(tmp_path).file, client=server.authority.issue("us"))
    assert "CERTIFICATE_VERIFY_FAILED" in await why_not(url)
    async with create_pool(settings_of(url)) as pool:
        assert "CERTIFICATE_VERIFY_FAILED" in (await readiness.unready(pool) or "")


async def test_a_server_with_a_wrong_certificate_is_not_used(server: Server) -> None:
    url = server.url(client=server.authority.issue("us"))
    wrong = {
        "IP address mismatch": server.authority.issue("localhost"),
        "certificate has expired": server.authority.issue(expired=True),
    }
    for why, shown in wrong.items():
        server.front.context = server.context(shown)
        assert why in await why_not(url)
    server.front.context = server.context(server.authority.issue())
    assert await why_not(url) == ""


async def test_a_server_that_asks_for_a_certificate_gets_no_password_without_a_good_one(
    server: Server, tmp_path: Path
) -> None:
    assert await why_not(server.url())
    assert await why_not(server.url(client=Authority(tmp_path).issue("us")))
    assert await why_not(server.url(client=server.authority.issue("us"))) == ""


async def test_a_server_without_tls_is_not_used(server: Server, postgres_url: str) -> None:
    plain = str(URL(server.url()).with_port(URL(postgres_url).port))
    assert "rejected SSL upgrade" in await why_not(plain)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=require", "an option sslmode of verify-full"),
        ("sslmode=verify-ca", "an option sslmode of verify-full"),
        ("sslrootcert={ca}", "an option sslmode of verify-full, since it has an option sslrootcert"),
        ("sslmode=prefer&sslcert={ca}", "an option sslmode of verify-full, since it has an option sslcert"),
        ("sslmode=verify-full&sslrootcert=/no/such", "a file that can be read as its option sslrootcert"),
    ],
)
def test_what_seems_to_be_verified_and_is_not_is_refused_at_start(
    query: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://admin:SECRET@localhost/test?{query.format(ca=Authority(tmp_path).file)}"
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SystemExit, match=f"^wrong settings: DATABASE_URL: must be with {said}[^\n]*$") as stopped:
        read_settings(DatabaseSettings)
    assert "SECRET" not in str(stopped.value)


def test_files_that_are_no_good_are_refused_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("us"), authority.issue("us")
    for query, said in (
        (f"sslrootcert={one.key}", "its sslrootcert: must be the certificates of CAs, as PEM"),
        (f"sslcert={one.certificate}&sslkey={other.key}", r"its sslcert: must be PEM, and its sslkey its key"),
    ):
        monkeypatch.setenv("DATABASE_URL", f"postgresql://admin:SECRET@localhost/test?sslmode=verify-full&{query}")
        with pytest.raises(SystemExit, match=f"^wrong settings: DATABASE_URL: {said}[^\n]*$"):
            read_settings(DatabaseSettings)
