"""The client of service A: one call, one outcome, never an exception."""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp
import structlog
from yarl import URL

from configurator import metrics
from configurator.answers import classify, parse_retry_after, read
from configurator.connections import Answer, Body, Request, TooLateError, is_refused, open_socket, tls_fault
from configurator.jobs import Job
from configurator.silence import Silence
from messaging.messages import Outcome, OutcomeKind
from runtime.clock import now
from runtime.tls import Reloading

log = structlog.stdlib.get_logger(__name__)

CONNECT_TIMEOUT_SECONDS = 10.0
REACH_SECONDS = 10.0
"""A request whose bytes have not reached A by then must never do so."""
PROBE_SECONDS = 1.0
LEAST_SECONDS = 0.001
"""aiohttp takes no time at all for no limit."""
KEEPALIVE_SECONDS = 3.0
"""Shorter than any server's: a call sent into a connection that A is closing has an unknown outcome."""


class ServiceA:
    """Service A over HTTP, or HTTPS with `tls`."""

    def __init__(
        self,
        url: str,
        tls: Reloading | None = None,
        *,
        probe_seconds: float = PROBE_SECONDS,
        reach_seconds: float = REACH_SECONDS,
    ) -> None:
        self._url = URL(url)
        self._tls = tls
        self._probe_seconds = probe_seconds
        """Between two attempts to reach an A that could not be reached."""
        self._path = f"{self._url.raw_path.rstrip('/')}/api/v1/equipment/cpe/"
        """The path of a call, without the device's serial."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=KEEPALIVE_SECONDS,
                socket_factory=partial(open_socket, reach_seconds=reach_seconds),
            ),
            request_class=Request,
            response_class=Answer,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self.reachable = asyncio.Event()
        """Set while the last connection could be made; otherwise `unreachable` is."""
        self.unreachable = asyncio.Event()
        self.reachable.set()
        self._fault: str | None = None
        """What was wrong with TLS when A could not be reached."""
        self._silence = Silence()

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

    @property
    def unready(self) -> str | None:
        """What a readiness check says: None while A can be reached, and answers."""
        if self.reachable.is_set():
            return self._silence.unready
        return f"service A: cannot be reached{f' ({self._fault})' if self._fault else ''}"

    async def configure(self, job: Job, on_begin: Callable[[], None] = lambda: None) -> Outcome:
        """Call A once for a job that has its lease, and tell what came of it, within the task's time limit.

        A job that is late is not called for, and handed back. `on_begin` is called when the request is written.
        """
        started = now()
        try:
            with metrics.IN_FLIGHT.track_inprogress():
                kind, reason, retry_after = await self._call(job, on_begin)
        except TooLateError:
            metrics.LATE.inc()
            return job.hand_back("the lease came late, or the process stood still")
        metrics.CALL_SECONDS[kind].observe(now() - started)
        self._silence.note(kind)
        # After an unknown end A may work on until the limit; after all others it has let go of the device.
        hold = max(0.0, job.seconds_left) if kind is OutcomeKind.UNKNOWN else 0.0
        # Only what is handed back says 0: an A that wants no pause gets the usual one.
        return job.end(kind, reason, hold_seconds=hold, retry_after_seconds=retry_after or None)

    async def _call(self, job: Job, on_begin: Callable[[], None]) -> tuple[OutcomeKind, str, float | None]:
        task = job.task
        body = Body(_json(job), lambda: job.is_late, on_begin)
        if job.is_late:
            raise TooLateError
        try:
            async with self._http.post(
                self._url.with_path(self._path + task.equipment_id, encoded=True),
                data=body,
                headers={
                    "Accept-Encoding": "identity",
                    "Idempotency-Key": str(task.task_id),
                    "X-Attempt": str(task.attempt),
                },
                allow_redirects=False,
                ssl=self._tls.context if self._tls else True,
                timeout=aiohttp.ClientTimeout(
                    total=max(job.seconds_left, LEAST_SECONDS),
                    sock_connect=CONNECT_TIMEOUT_SECONDS,
                    ceil_threshold=math.inf,  # Otherwise what is over 5 s ends at a whole second of the loop's time.
                ),
            ) as response:
                said = await read(response)
                kind, reason = classify(response.status, said, job.parameters)
                return kind, reason, parse_retry_after(response.headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._fault = tls_fault(error)
            self.reachable.clear()
            self.unreachable.set()
            reason = self._fault or type(error).__name__
            return OutcomeKind.UNAVAILABLE, f"service A cannot be reached: {reason}", None
        except TimeoutError:
            return OutcomeKind.UNKNOWN, "no answer within the time limit", None
        except (aiohttp.ClientError, OSError) as error:
            if body.is_withheld:
                raise TooLateError from None
            if is_refused(fault := tls_fault(error)):
                return OutcomeKind.UNAVAILABLE, f"service A refuses our certificate: {fault}", None
            return OutcomeKind.UNKNOWN, f"no answer: {type(error).__name__}", None

    async def watch(self) -> None:
        """Whenever A cannot be reached, probe it until it can; without end."""
        while True:
            await self.unreachable.wait()
            log.warning("service_a.unreachable", url=self.address, tls=self._fault)
            with metrics.PAUSED.track_inprogress():
                await asyncio.sleep(self._probe_seconds)
                while not await self._probe():
                    await asyncio.sleep(self._probe_seconds)
            log.info("service_a.reachable", url=self.address)

    async def _probe(self) -> bool:
        """Try to connect: a POST would configure something. Sets `reachable` when it succeeds."""
        tls = self._tls.context if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                _, writer = await asyncio.open_connection(self._url.host, self._url.port, ssl=tls)
        except (OSError, TimeoutError) as error:
            self._fault = tls_fault(error)
            return False
        writer.close()
        self.unreachable.clear()
        self.reachable.set()
        return True


def _json(job: Job) -> bytes:
    return b'{"timeoutInSeconds":%d,"parameters":%s}' % (job.task.timeout_in_seconds, job.parameters.encode())
