"""TLS, tokens and sealing for systems that tests start: what the second pass of the e2e tests runs with."""

import os
import secrets
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from yarl import URL

from runtime.tls import server_context
from service_b.tokens import token
from service_b.tokens.file import write_line
from tests.seals import make_keys
from tests.system.certificates import SERVERS, Certificates
from tests.system.processes import Module
from tests.system.tls_front import TlsFront


class Guards:
    """What is switched on, with files of its own in `folder`; nothing by default."""

    def __init__(
        self, folder: Path | None = None, *, tls: bool = False, tokens: bool = False, sealing: bool = False
    ) -> None:
        self.certificates = Certificates(folder / "certificates") if folder and tls else None
        self.token = token.make() if tokens else ""
        self._own: dict[Module, dict[str, str]] = {"service_b": {}, "service_b.results": {}, "configurator": {}}
        if folder and tokens:
            (folder / "tokens").write_text(write_line(self.token, "tester", ["admin"], ["*"], None) + "\n")
            self._own["service_b"]["TOKENS_FILE"] = str(folder / "tokens")
            lease_token = secrets.token_urlsafe()
            for asks_or_answers in ("service_b.results", "configurator"):
                self._own[asks_or_answers]["LEASE_TOKEN"] = lease_token
        if folder and sealing:
            keys = make_keys(folder / "keys")
            self._own["service_b"]["SEAL_PUBLIC_KEY_FILE"] = str(keys.public)
            self._own["service_b"]["IDEMPOTENCY_SECRET"] = secrets.token_urlsafe()
            self._own["configurator"]["SEAL_KEY_FILE"] = str(keys.private)

    @property
    def headers(self) -> Mapping[str, str]:
        """What a client sends with each request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def ca_file(self) -> str:
        """Whom a client believes; nothing without TLS."""
        return str(self.certificates.ca) if self.certificates else ""

    def secrets(self, module: Module) -> dict[str, str]:
        """Variables of a process, but for those of TLS."""
        return self._own.get(module, {})

    def environment(self, module: Module) -> dict[str, str]:
        """All variables of a process."""
        own = self.secrets(module)
        if self.certificates and module in SERVERS:
            own = own | self.certificates.environment(module)
        if self.certificates and module == "configurator":
            own = own | {"SERVICE_A_CA_FILE": self.ca_file}
        return own

    def client(self) -> ssl.SSLContext | None:
        """What a client speaks."""
        return self.certificates.client() if self.certificates else None

    def server(self, name: str) -> ssl.SSLContext | None:
        """What a server speaks that a test serves itself."""
        return server_context(self.certificates.files(name)) if self.certificates else None

    @contextmanager
    def database(self, url: str) -> Iterator[str]:
        """Tell where our processes reach a database."""
        port = URL(url).port
        if not self.certificates or not port:
            yield url
            return
        with TlsFront(server_context(self.certificates.files("postgres")), port) as front:
            verified = {"sslmode": "verify-full", "sslrootcert": self.ca_file}
            yield str(URL(url).with_port(front.port).update_query(verified))


def of_this_run() -> Guards:
    """Everything, if `GUARDED` is set."""
    if not os.environ.get("GUARDED"):
        return Guards()
    return Guards(Path(tempfile.mkdtemp(prefix="guards-")), tls=True, tokens=True, sealing=True)
