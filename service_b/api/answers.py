"""Answers that are written in one piece.

aiohttp fills a map of headers, completes it and writes it out again, anew for each answer: a third of all that it does
about a request.
"""

import json
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11


class JsonAnswer(web.StreamResponse):
    """A whole answer: its code, its body in JSON, and the headers that it needs besides."""

    def __init__(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status=code)
        self._json = body
        self._more = headers

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:  # type: ignore[explicit-override]
        """Write it; to HEAD the head alone."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        head = f"{_status_line(self.status)}Content-Length: {len(self._json)}\r\nDate: {_date(int(time.time()))}\r\n"
        if self._more:
            for name, value in self._more.items():
                head += f"{name}: {value}\r\n"
        if not self._keep_alive:
            head += "Connection: close\r\n"
        elif request.version != HttpVersion11:
            head += "Connection: keep-alive\r\n"
        body = b"" if request.method == "HEAD" else self._json
        await request.writer.write_eof(f"{head}\r\n".encode() + body)
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:  # type: ignore[explicit-override]
        """Write no more: it is whole."""


def json_error(code: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JsonAnswer:
    """Make the answer to a failed request."""
    text = json.dumps(body, separators=(",", ":"))
    return JsonAnswer(code, text.encode(), headers)


@lru_cache
def _status_line(code: int) -> str:
    return f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\nContent-Type: application/json\r\n"


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
