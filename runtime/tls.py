"""TLS: who we are and whom we believe, by PEM files that may be replaced while the process lives."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

log = structlog.stdlib.get_logger(__name__)

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Files:
    """Our certificate (with those between it and its CA), its key, and the certificates of the CAs that we believe."""

    certificate: Path | None
    key: Path | None
    ca: Path | None
    names: tuple[str, str, str]
    """What each is called where it is set."""

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Give those that there are, with their names."""
        paths = (self.certificate, self.key, self.ca)
        return ((name, path) for name, path in zip(self.names, paths, strict=True) if path)


def server_context(files: Files) -> ssl.SSLContext:
    """Make the context of a server; with a CA, only for clients that it vouches for. Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= (
        ssl.OP_NO_RENEGOTIATION
    )  # It would cost us more than the client that asks for it again and again.
    context.set_alpn_protocols(["http/1.1"])
    if not files.certificate and not files.key:
        raise ValueError(f"{files.names[0]}: must be set with {files.names[2]}")
    _read(context, files)
    if files.ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: Files) -> ssl.SSLContext:
    """Make the context of a client, who checks the server's name, too. Raises ValueError.

    Without a CA's certificates the system's are believed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not files.ca:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    _read(context, files)
    return context


def _read(context: ssl.SSLContext, files: Files) -> None:
    certificate, key, ca = files.names
    if files.certificate is None and files.key:
        raise ValueError(f"{certificate}: must be set with {key}")
    if files.certificate and files.key is None:
        raise ValueError(f"{key}: must be set with {certificate}")
    for name, path in files:
        try:
            path.read_bytes()  # OpenSSL does not say which of them it could not read.
        except OSError as error:
            raise ValueError(f"{name}: must be a file that can be read ({error.strerror})") from None
    if files.ca:
        try:
            context.load_verify_locations(files.ca)
        except (ssl.SSLError, OSError):
            raise ValueError(f"{ca}: must be the certificates of CAs, as PEM") from None
    if files.certificate:
        try:
            context.load_cert_chain(files.certificate, files.key, password=_refuse_to_ask)
        except (ssl.SSLError, OSError) as error:
            why = getattr(error, "reason", None) or error
            raise ValueError(f"{certificate}: must be PEM, and {key} its key, not encrypted ({why})") from None


def _refuse_to_ask() -> NoReturn:
    """Take no key that is encrypted: OpenSSL would ask for its pass phrase on the terminal."""
    raise OSError("the key is encrypted")


class Reloading:
    """A context that is made anew when its files change. What was connected with the one before goes on with that.

        a file changes ──▶ all as they were a look ago ──▶ a new context
                                        └─▶ they are no good: said once, and the context in force stays

    Files are replaced one after the other, so they are read only when they have come to rest.
    """

    def __init__(
        self, make: Callable[[Files], ssl.SSLContext], files: Files, *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._make = make
        self._files = files
        self._look_seconds = look_seconds
        # What the files looked like when they were read last.
        self._read = self._look()
        self.context = make(files)

    async def watch(self) -> None:
        """Look at the files from time to time, without end."""
        before = self._read
        while True:
            await asyncio.sleep(self._look_seconds)
            now = await asyncio.to_thread(self._look)
            if now == before and now != self._read:
                self._read = now
                await asyncio.to_thread(self._reload)
            before = now

    def _look(self) -> list[tuple[int, ...] | None]:
        """Tell the files apart from others that were there before; a mount's links may have been turned elsewhere."""
        return [_identity(path) for _, path in self._files]

    def _reload(self) -> None:
        names = [name for name, _ in self._files]
        try:
            self.context = self._make(self._files)
        except ValueError as error:
            log.error("tls.not_reloaded", reason=str(error), files=names)
        else:
            log.info("tls.reloaded", files=names)


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
