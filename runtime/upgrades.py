"""Reading on behind a request that asks for another protocol.

We speak no other, and RFC 9110 (7.8) lets a server ignore the wish; but aiohttp's parser stops behind such a request,
and drops what else it was given with it: the client's next request. So what may hold one is given to the parser in
pieces that end where a request may end:

    POST / HTTP/1.1 … Upgrade: h2c … \\r\\n\\r\\n | {"a": 1} | GET / HTTP/1.1 … \\r\\n\\r\\n | GET …
                                the end of a head | of a body, by its Content-Length
"""

from collections.abc import Iterator

from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader

END = b"\r\n\r\n"
"""Of a head, and of a chunked body. It may stand elsewhere, too: a cut too many costs little."""
LONGEST = len(b"connect ")


class Cutter:
    """Cuts what is read from one connection."""

    __slots__ = ("_before", "_body", "_body_left", "_is_on", "_last")

    def __init__(self) -> None:
        self._is_on = False
        """Whether the request that is being read may stop the parser."""
        self._before = self._last = b""
        """The end of what came before this read, and with it: a word or an end may be split between two."""
        self._body: StreamReader | None = None
        """Of the last request that stops the parser."""
        self._body_left = 0
        """How much of it is to come, where its head says that."""

    def note(self, message: RawRequestMessage, body: StreamReader) -> None:
        """Take note of the head of a request, before the next piece is cut."""
        if message.upgrade and not body.is_eof():
            self._body = body
            self._body_left = 0 if message.chunked else int(message.headers["Content-Length"])

    def must_cut(self, data: bytes) -> bool:
        """Take note of a read, and tell whether it must be cut."""
        text = (self._last + data).lower()
        self._before, self._last = self._last, text[-LONGEST:]
        # Both kinds of request hold this word: `Connection: Upgrade` and `CONNECT`.
        at = text.find(b"connect")
        if at >= 0 and (b"upgrade" in text or b"connect " in text or text.find(END, at) < 0):
            self._is_on = True
        return self._is_on or (self._body is not None and not self._body.is_eof())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Cut a read; between two pieces the caller takes `note` of a head that has come."""
        begin = 0
        while begin < len(data):
            if self._body_left:
                end = min(begin + self._body_left, len(data))
                self._body_left -= end - begin
                ended = not self._body_left
            else:
                end = self._find_end(data, begin)
                ended = end > 0
                end = end if ended else len(data)
            yield data[begin:end]
            begin = end
            self._is_on = not ended

    def _find_end(self, data: bytes, begin: int) -> int:
        """Find behind the next END, 0 if there is none."""
        if begin == 0 and (found := (self._before[-3:] + data[:3]).find(END)) >= 0:
            return found + len(END) - len(self._before[-3:])
        found = data.find(END, begin)
        return found + len(END) if found >= 0 else 0
