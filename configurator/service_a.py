"""The client of service A: one call, one outcome, never an exception."""

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from configurator import metrics
from messaging.messages import ConfigureTask, Outcome, OutcomeKind

CONNECT_TIMEOUT_SECONDS = 10.0
KEEPALIVE_SECONDS = 3.0
"""Shorter than any server's: a call sent into a connection that A is closing has an unknown outcome."""
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


class ServiceA:
    """Service A over HTTP. Of `reachable` and `unreachable` one is set: could the last connection be made?"""

    def __init__(self, url: str) -> None:
        self._url = URL(url)
        self._path = f"{url}/api/v1/equipment/cpe/"
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self.reachable = asyncio.Event()
        self.unreachable = asyncio.Event()
        self.reachable.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def address(self) -> str:
        """Where A is, without a password."""
        return f"{self._url.host}:{self._url.port}"

    async def configure(self, task: ConfigureTask) -> Outcome:
        """Call A once for a task's attempt, and tell what came of it, within the task's time limit."""
        started = time.monotonic()
        with metrics.IN_FLIGHT.track_inprogress():
            kind, reason, retry_after = await self._call(task)
        seconds = time.monotonic() - started
        metrics.CALLS.labels(kind.value).observe(seconds)
        # After an unknown end A may work on until the limit; after all others it has let go of the device.
        hold = max(0.0, task.time_limit_seconds - seconds) if kind is OutcomeKind.UNKNOWN else 0.0
        return Outcome(
            task_id=task.task_id,
            attempt=task.attempt,
            kind=kind,
            reason=reason,
            hold_seconds=hold,
            retry_after_seconds=retry_after,
        )

    async def _call(self, task: ConfigureTask) -> tuple[OutcomeKind, str, float | None]:
        try:
            async with self._http.post(
                URL(self._path + task.equipment_id, encoded=True),
                data=aiohttp.BytesPayload(_body(task), content_type="application/json"),
                headers={
                    "Idempotency-Key": str(task.task_id),
                    "X-Attempt": str(task.attempt),
                },
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=task.time_limit_seconds, sock_connect=CONNECT_TIMEOUT_SECONDS),
            ) as response:
                body = await _read(response)
                kind, reason = classify(response.status, body)
                return kind, reason, parse_retry_after(response.headers, datetime.now(UTC))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.reachable.clear()
            self.unreachable.set()
            return OutcomeKind.UNAVAILABLE, f"service A cannot be reached: {type(error).__name__}", None
        except TimeoutError:
            return OutcomeKind.UNKNOWN, "no answer within the time limit", None
        except (aiohttp.ClientError, OSError) as error:
            return OutcomeKind.UNKNOWN, f"no answer: {type(error).__name__}", None

    async def probe(self) -> bool:
        """Try a TCP connection: a POST would configure something. Sets `reachable` when it succeeds."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                _, writer = await asyncio.open_connection(self._url.host, self._url.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        self.unreachable.clear()
        self.reachable.set()
        return True


def _body(task: ConfigureTask) -> bytes:
    return b'{"timeoutInSeconds":%d,"parameters":%s}' % (task.timeout_in_seconds, task.parameters.encode())


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer, but no more of it than an answer of A's can be long."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            response.close()
            return b""
    return bytes(body)


def classify(status: int, body: bytes) -> tuple[OutcomeKind, str]:
    """Read an answer: only A's own JSON (`code` as the HTTP status) counts as an answer of A's."""
    if status in (429, 503):
        return OutcomeKind.UNAVAILABLE, f"service A answered {status}"
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or type(answer.get("code")) is not int or answer["code"] != status:
        return OutcomeKind.UNKNOWN, f"not an answer of service A: HTTP {status}"
    message = answer.get("message")
    said = (
        (message if isinstance(message, str) else "")
        .encode(errors="replace")
        .decode()
        .replace("\x00", "\ufffd")[:MAX_REASON]
    )
    return ANSWERS.get(status, OutcomeKind.UNKNOWN), f"{status} {said}"


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Read `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3); None without a usable one."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 9:
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)
