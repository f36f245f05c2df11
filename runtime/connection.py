"""One connection of a client: aiohttp's, with what aiohttp lacks."""

import asyncio
import select
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

from runtime import malformed
from runtime.answers import Answer, json_error, last_words
from runtime.connections import FRESH_SECONDS, OWES, SWEEP_SECONDS, Claim, Connections
from runtime.upgrades import Cutter

log = structlog.stdlib.get_logger(__name__)


class Connection(web.RequestHandler):
    """One connection: aiohttp's, but that it has limits, and that its answers to what is not HTTP quote nothing."""

    __slots__ = ("_all", "_cutter", "_head_since", "_is_tls", "_stuck_since", "_wire")

    def __init__(self, server: web.Server, all_: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=all_.limits.keepalive_seconds,
            access_log=None,  # type: ignore[arg-type]  # how it is turned off
            auto_decompress=False,  # A compressed body is refused; of a broken one aiohttp would log a traceback.
        )
        self._all = all_
        self._cutter = Cutter()
        self._wire: asyncio.Transport | None = None
        """The transport; aiohttp forgets it at its close, but what it has still to write can hold it open."""
        self._is_tls = False
        self._head_since = 0.0
        """When a head began to come that is not whole yet; 0 without one."""
        self._stuck_since = 0.0
        """Since when an answer has been lying in our buffer; 0 without one."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        super().connection_made(transport)
        self._all.add(self)

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.remove(self)
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if data and self._cutter.must_cut(data):
            for piece in self._cutter.pieces(data):
                self._receive_piece(piece)
        else:
            super().data_received(data)
        if self._waiter is None or self._waiter.done():
            self._head_since = 0.0
        elif not self._head_since and data.strip():  # Some clients send an empty line behind a body.
            self._head_since = self._loop.time()

    def _receive_piece(self, piece: bytes) -> None:
        """Receive what holds no more than the end of a request, and read on behind it whatever it asks for."""
        known = self._request_count
        super().data_received(piece)
        if self._upgraded and self._parser is not None:
            self._parser.set_upgraded(False)
            self._upgraded = False
        if self._request_count > known:
            message, payload = self._messages[-1]
            if isinstance(message, RawRequestMessage):
                self._cutter.note(message, payload)

    @override
    def pause_writing(self) -> None:
        self._stuck_since = self._loop.time()
        super().pause_writing()

    @override
    def resume_writing(self) -> None:
        self._stuck_since = 0.0
        super().resume_writing()

    @override
    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Send an answer; aiohttp's own errors (to an `Expect` that it does not know) quote the request."""
        if type(resp) is not Answer and isinstance(
            resp, web.HTTPException
        ):  # The first asks quicker, and nearly always.
            allow = {"Allow": resp.headers["Allow"]} if "Allow" in resp.headers else None
            resp = json_error(resp.status, {"code": resp.status, "message": resp.reason}, allow)
        return web.RequestHandler.finish_response(self, request, resp, start_time)

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what no handler of ours has caught."""
        if isinstance(exc, HttpProcessingError):
            code, text = malformed.judge(exc)
            self._all.malformed.add(request.remote, code, type(exc).__name__)
        elif isinstance(exc, ConnectionError):  # The client has left; nobody is there to be told.
            raise exc
        else:
            code, text = 500, HTTPStatus.INTERNAL_SERVER_ERROR.phrase
            log.error("http.bug", method=request.method, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        answer = json_error(code, {"code": code, "message": text})
        answer.force_close()
        return answer

    @property
    def waits_since(self) -> float:
        """When it was made, or gave its last answer: aiohttp reckons from then when it will be idle for too long."""
        return self._next_keepalive_close_time - self._all.limits.keepalive_seconds

    def claim(self, now: float) -> Claim:
        """Judge how good its claim to its place is."""
        if self._stuck_since or (self._is_tls and self._is_stuck(now)):
            return Claim.NONE
        request = self._current_request
        if len(self._messages) > (request is None):
            return Claim.GREEDY
        if self._messages or (request is not None and (request.content.is_eof() or request.get(OWES))):
            return Claim.SERVED
        return Claim.FRESH if now < self.waits_since + FRESH_SECONDS else Claim.NONE

    def check(self, now: float) -> None:
        """End it where its client takes too long."""
        limits = self._all.limits
        if not self._is_stuck(now):
            self._stuck_since = 0.0
        elif not self._stuck_since:
            self._stuck_since = now
        if self._stuck_since and now > self._stuck_since + limits.answer_seconds:
            self._all.drop(self, "answer not taken")
        elif self._head_since and now > self._head_since + limits.head_seconds:
            self._head_since = 0.0
            self._all.count("head not sent")
            self._end_with(last_words(408, "Request Timeout"))

    def abort(self) -> None:
        """End it at once."""
        self.force_close()
        if self._wire is not None:
            self._wire.abort()

    def _is_stuck(self, now: float) -> bool:
        """Tell whether an answer waits for its client to take what came before."""
        if self._wire is None or self._wire.get_write_buffer_size():
            return self._wire is not None
        return self._is_tls and not self._is_taking(now)

    def _is_taking(self, now: float) -> bool:
        """Ask the kernel whether it takes more; what TLS has encrypted lies in a transport that nobody else can ask.

        A client that has taken its answer and is silent is not asked about: to ask takes as long as all else here.
        """
        if self._waiter is not None and not self._stuck_since and now > self.waits_since + 2 * SWEEP_SECONDS:
            return True
        plain = cast(asyncio.Transport, self._wire).get_extra_info("socket")
        if plain is None:  # It is lost, and we shall hear of it.
            return True
        poll = select.poll()
        poll.register(plain, select.POLLOUT)
        return bool(poll.poll(0))

    def _end_with(self, words: bytes) -> None:
        if self._wire is not None and not self._wire.is_closing():
            self._wire.write(words)
        self.force_close()
