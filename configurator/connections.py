"""The connections to service A. One that is given up is reset: its request must not reach A when nobody waits for it.

Closing alone leaves what A has not acknowledged with the kernel, which goes on sending it for minutes.
"""

import asyncio
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from typing_extensions import override

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that ends with a reset: the kernel forgets what it would send again (socket(7))."""
CLOSE = struct.pack("ii", 0, 0)
"""SO_LINGER of one that ends as usual."""
_sockets: WeakValueDictionary[int, socket.socket] = WeakValueDictionary()
"""Those of the open connections, by their descriptors: uvloop's own stand-in makes a new one for each option set."""
REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
"""Of which TLS alerts (RFC 8446, 6.2) the names speak when a server does not take a client."""


def open_socket(address: aiohttp.AddrInfoType, reach_seconds: float) -> socket.socket:
    """Make a socket that breaks when what was sent is not acknowledged within `reach_seconds`.

    A slow A is none of its business: its kernel acknowledges, however long A takes to answer (`TCP_USER_TIMEOUT` in
    tcp(7), RFC 5482).
    """
    family, kind, protocol, *_ = address
    opened = socket.socket(family, kind, protocol)
    _sockets[opened.fileno()] = opened
    if sys.platform == "linux":
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(reach_seconds * 1000))
    return opened


class Answer(aiohttp.ClientResponse):
    """An answer that knows whether all of it has come. aiohttp has no public hook for that moment."""

    is_whole = False

    @override
    def _response_eof(self) -> None:
        self.is_whole = True
        super()._response_eof()


class TooLateError(Exception):
    """A request must not be sent any more."""


class Body(aiohttp.BytesPayload):
    """A body that is not written when it is too late; nor is the head then, which aiohttp writes with it.

    `on_write` is called right after.
    """

    def __init__(self, value: bytes, is_late: Callable[[], bool], on_write: Callable[[], None]) -> None:
        super().__init__(value, content_type="application/json")
        self._is_late = is_late
        self._on_write = on_write
        self.is_withheld = False

    @override
    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if self._is_late():
            self.is_withheld = True
            raise TooLateError
        await super().write_with_length(writer, content_length)
        self._on_write()


class Request(aiohttp.ClientRequest):
    """A request whose connection is reset unless the whole answer has come, whatever else ends it.

    That holds from the first byte on, so that it also holds for a process that is killed.
    """

    @override
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        _set_linger(conn.transport, RESET)
        conn.add_callback(lambda: self._end(conn.transport))  # Called before aiohttp keeps or closes the connection.
        return await super().send(conn)

    def _end(self, transport: asyncio.Transport | None) -> None:
        if getattr(self.response, "is_whole", False):
            _set_linger(transport, CLOSE)
        elif transport:
            transport.abort()


def _set_linger(transport: asyncio.Transport | None, linger: bytes) -> None:
    if transport:  # Until aiohttp has heard that it is lost, so that the descriptor is still this one.
        descriptor = transport.get_extra_info("socket").fileno()
        _sockets[descriptor].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def tls_fault(error: BaseException) -> str | None:
    """Tell what was wrong with TLS, in OpenSSL's words; None where it was something else."""
    fault = error.__cause__ or error
    if isinstance(fault, ssl.SSLCertVerificationError):
        return fault.verify_message
    return fault.reason if isinstance(fault, ssl.SSLError) else None


def is_refused(fault: str | None) -> bool:
    """Tell whether A refused us before it read the request: a client hears of that after it has sent it (TLS 1.3)."""
    return fault is not None and "_ALERT_" in fault and any(name in fault for name in REFUSALS)
