"""The stub's HTTPS: a certificate and its key, which may be replaced while it runs."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web

log = logging.getLogger("service_a")

LOOK_SECONDS = 1.0


def make_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make a server's context. Raises OSError for files that cannot be read, or used together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # An empty pass phrase: otherwise OpenSSL asks for that of an encrypted key on the terminal.
    context.load_cert_chain(certificate, key, password="")
    return context


def reloading(
    context: ssl.SSLContext, certificate: Path, key: Path, look_seconds: float = LOOK_SECONDS
) -> Callable[[web.Application], AsyncIterator[None]]:
    """Make a `cleanup_ctx` that gives the context what the files hold, whenever they have changed and come to rest."""

    def look() -> list[tuple[int, int, int] | None]:
        return [_identity(path) for path in (certificate, key)]

    async def follow() -> None:
        loaded = before = look()
        while True:
            await asyncio.sleep(look_seconds)
            now = look()
            if now == before and now != loaded:
                loaded = now
                try:
                    make_context(certificate, key)  # A pair that does not belong together would spoil the other one.
                    context.load_cert_chain(certificate, key, password="")
                    log.info("the certificate was replaced")
                except OSError as error:
                    log.error("the certificate stays: %s", getattr(error, "reason", None) or error)
            before = now

    async def run(app: web.Application) -> AsyncIterator[None]:
        following = asyncio.create_task(follow())
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    return run


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
