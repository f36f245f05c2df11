"""How an answer of service A's is read."""

import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import aiohttp

from configurator.redaction import redact
from messaging.messages import OutcomeKind

MAX_ANSWER_BYTES = 64 * 1024
MAX_REASON = 300
MAX_RETRY_AFTER_SECONDS = 10.0**8
"""What a message can carry; the results process waits no longer than its own setting says."""

ANSWERS = {
    200: OutcomeKind.SUCCESS,
    404: OutcomeKind.NOT_FOUND,
    500: OutcomeKind.FAILED,
    400: OutcomeKind.REJECTED,
    422: OutcomeKind.REJECTED,
}
"""The answers that end a task."""
QUOTING_NOTHING = frozenset({"success", "The requested equipment is not found", "Internal provisioning exception"})
"""What A says in its contract, word for word: nothing of a request can be in it, and so nothing is looked for."""


async def read(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer, but no more of it than an answer of A's can be long; nothing if it is longer or unreadable."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            return b""
    codings = response.headers.getall("Content-Encoding", ())
    return decompress(bytes(body), ",".join(codings)) if codings else bytes(body)


def decompress(body: bytes, codings: str) -> bytes:
    """Undo what a proxy before A may do though it was not asked (RFC 9110, section 8.4); nothing if that cannot be.

    What comes out is bounded like an answer that comes as it is.
    """
    for coding in reversed(codings.lower().split(",")):
        match coding.strip():
            case "" | "identity":
                continue
            case "gzip" | "x-gzip":
                formats = [16 + zlib.MAX_WBITS]
            case "deflate":
                formats = [zlib.MAX_WBITS, -zlib.MAX_WBITS]  # Some send it without zlib's frame.
            case _:
                return b""
        body = _inflate(body, formats)
    return body


def _inflate(body: bytes, formats: list[int]) -> bytes:
    for wbits in formats:
        inflating = zlib.decompressobj(wbits)
        try:
            plain = inflating.decompress(body, MAX_ANSWER_BYTES + 1)
        except zlib.error:
            continue
        return plain if inflating.eof and len(plain) <= MAX_ANSWER_BYTES else b""
    return b""


def classify(status: int, body: bytes, parameters: str) -> tuple[OutcomeKind, str]:
    """Read an answer: only A's own JSON (`code` as the HTTP status) counts as an answer of A's.

    The reason holds what A says, without the values of `parameters` (JSON text) that it may quote.
    """
    if status in (429, 503):
        return OutcomeKind.UNAVAILABLE, f"service A answered {status}"
    said = _message(status, body)
    if said is None:
        return OutcomeKind.UNKNOWN, f"not an answer of service A: HTTP {status}"
    if said not in QUOTING_NOTHING:
        said = redact(said, parameters, MAX_REASON).encode(errors="replace").decode().replace("\x00", "\ufffd")
    return ANSWERS.get(status, OutcomeKind.UNKNOWN), f"{status} {said}"


@lru_cache(maxsize=8)  # Nearly all answers are the same few.
def _message(status: int, body: bytes) -> str | None:
    """Return what A says; None if it is not A that says it."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or type(answer.get("code")) is not int or answer["code"] != status:
        return None
    message = answer.get("message")
    return message if isinstance(message, str) else ""


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3); None without a usable one."""
    if "Retry-After" not in headers:
        return None
    value = headers["Retry-After"].strip()
    if value.isascii() and value.isdigit() and len(value) < 9:
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)
