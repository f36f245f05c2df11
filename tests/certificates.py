"""Certificates for tests, as files: good ones, and each kind of bad one."""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import trustme

from runtime.tls import Files

NAMES = "the certificate", "the key", "the CA"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def replace(self, other: "Pair") -> None:
        """Put another pair in the place of this one, one file after the other."""
        other.certificate.replace(self.certificate)
        other.key.replace(self.key)


class Authority:
    """A CA of a test's own, whose files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / f"{uuid4().hex}.ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, expired: bool = False) -> Pair:
        """Issue a certificate for these hosts, by default this one."""
        until = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
        made = self._ca.issue_cert(
            *(names or ("127.0.0.1", "localhost")), not_before=until - timedelta(9), not_after=until
        )
        pair = Pair(*(self._folder / f"{uuid4().hex}.{kind}.pem" for kind in ("certificate", "key")))
        made.private_key_pem.write_to_path(pair.key)
        for number, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(pair.certificate, append=number > 0)
        return pair

    def client(self, pair: Pair | None = None) -> ssl.SSLContext:
        """Make a client that trusts this CA, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.file)
        if pair:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


def files(pair: Pair | None = None, ca: Path | None = None) -> Files:
    """Name a test's files."""
    return Files(pair.certificate if pair else None, pair.key if pair else None, ca, NAMES)


async def ask(port: int, path: str, context: ssl.SSLContext) -> tuple[bytes, object]:
    """Send a GET by TLS; return the whole answer, and the serial number of the certificate that was shown.

    Raises OSError where the handshake fails, which a client whose certificate is refused may hear of only later.
    """
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        serial = writer.get_extra_info("peercert")["serialNumber"]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        try:
            return await reader.read(), serial
        finally:
            writer.transport.abort()
