"""Answers that are written in one piece.

aiohttp fills a map of headers, completes it and writes it out again, anew for each answer: a third of all that it does
about a request. It also names itself in each (`Server:`).
"""

import json
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http.client import responses
from typing import Any, NoReturn

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11

JSON = "application/json"

CLOSE = "Connection: close\r\n"
OWN_HEADERS = {"connection", "content-length", "content-type", "date", "transfer-encoding"}
"""Written by `Answer` itself: a second one would contradict it."""
WITHOUT_BODY = {204, 205, 304}
PIECE_BYTES = 128 * 1024
"""A longer body goes out in pieces, so that a client that takes its time has no copy of it in our memory."""


class Answer(web.StreamResponse):
    """A whole answer: its code, its body, and the headers that it needs besides.

    It takes all that it says when it is made, and raises `ValueError` then for what cannot be said. What a
    `StreamResponse` could do later (more headers, cookies, compression, a body in pieces, the signal
    `on_response_prepare`) it refuses instead of losing it: see `REFUSED`.
    """

    def __init__(self, code: int, body: bytes, headers: Mapping[str, str] | None = None, *, kind: str = JSON) -> None:
        # Not super().__init__(), which makes a map of headers: a fiftieth of all that is done for a request.
        self._status, self._reason, self._state = code, responses.get(code, ""), {}
        self._head = _head(code, kind, len(body), headers)
        self._whole = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:  # type: ignore[explicit-override]
        """Write it; to HEAD the head alone."""
        if self._eof_sent:  # By a handler that called this itself.
            return request.writer
        match = getattr(request, "_match_info", None)
        if match is not None:  # As it is for a request that could not be read.
            for app in match._apps:  # noqa: SLF001 - `apps` copies the list
                if app.on_response_prepare:
                    raise TypeError("on_response_prepare changes answers: an Answer is whole")
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        head = self._head
        if not self._keep_alive:
            head += CLOSE
        elif request.version != HttpVersion11:
            head += "Connection: keep-alive\r\n"
        self._eof_sent = True
        body = b"" if request.method == "HEAD" else self._whole
        if len(body) > PIECE_BYTES:
            await request.writer.write(f"{head}\r\n".encode())
            whole = memoryview(body)
            for start in range(0, len(body), PIECE_BYTES):  # Each waits for the client to take those before.
                await request.writer.write(whole[start : start + PIECE_BYTES])
            await request.writer.write_eof()
        else:
            await request.writer.write_eof(f"{head}\r\n".encode() + body)
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:  # type: ignore[explicit-override]
        """Write no more: it is whole."""
        if data:
            self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("an Answer is whole: give it its code, body and headers when you make it")


REFUSED = (
    *("headers", "cookies", "set_cookie", "del_cookie", "content_type", "charset", "content_length", "last_modified"),
    *("etag", "set_status", "enable_compression", "enable_chunked_encoding", "write", "body_length", "output_length"),
)
for _name in REFUSED:
    setattr(Answer, _name, property(Answer._refuse, Answer._refuse))  # noqa: SLF001 - our own


def json_error(code: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """Make the answer to a failed request."""
    return Answer(code, json.dumps(body, separators=(",", ":")).encode(), headers)


def last_words(code: int, message: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Make the answer that closes a connection on which there is no request to answer."""
    body = json.dumps({"code": code, "message": message}, separators=(",", ":")).encode()
    return f"{_head(code, JSON, len(body), headers)}{CLOSE}\r\n".encode() + body


def _head(code: int, kind: str, length: int, headers: Mapping[str, str] | None) -> str:
    head = _first_lines(code, kind, length) + _date(int(time.time()))
    if headers:
        for name, value in headers.items():
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"{name}: a header's value is printable ASCII")
            head += f"{_field_name(name)}: {value}\r\n"
    return head


@lru_cache(maxsize=1024)
def _first_lines(code: int, kind: str, length: int) -> str:
    if code < 200 or code in WITHOUT_BODY or code not in responses:
        raise ValueError(f"{code}: no such answer, or one that has no body")
    return f"HTTP/1.1 {code} {responses[code]}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"


@lru_cache
def _field_name(name: str) -> str:
    """Check a header's name (RFC 9110, 5.6.2: a token)."""
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or name.lower() in OWN_HEADERS:
        raise ValueError(f"{name!r} is no header that an answer may have")
    return name


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"
