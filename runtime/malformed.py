"""What is not HTTP: how it is answered, and how it is logged without pushing all else out of the log."""

import structlog
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from runtime import metrics

log = structlog.stdlib.get_logger(__name__)

TOO_MANY_HEADERS = "Too many headers received"
"""aiohttp's words; it has no class of its own for that."""


def judge(error: HttpProcessingError) -> tuple[int, str]:
    """Tell code and message for the client. aiohttp's own message quotes the request."""
    if isinstance(error, LineTooLong) or error.message == TOO_MANY_HEADERS:
        return 431, "Request Header Fields Too Large"
    return 400, "Malformed HTTP request"


class MalformedLog:
    """One line for the first of a second, with its peer, and one with the number of the others."""

    def __init__(self) -> None:
        self._seen = 0

    def add(self, peer: str | None, code: int | None, error: str) -> None:
        """Note a request, by the name of its error: the error's text quotes it. Without a code, nobody was answered."""
        metrics.MALFORMED.inc()
        self._seen += 1
        if self._seen == 1:
            log.info("http.malformed", peer=peer, status=code, error=error)

    def begin_second(self) -> None:
        """Tell how many more there were."""
        if self._seen > 1:
            log.info("http.malformed_more", count=self._seen - 1)
        self._seen = 0
