"""The load generator: HTTP/1.1 by hand, in a process of its own, so that it is never what is measured.

Requests are bytes made beforehand but for the serial, connections are kept alive and not pipelined, and of an answer
only its code and its end are looked for. `python -m tests.bench.load` reads a `Load` as JSON and prints a `Result`.
"""

import asyncio
import json
import math
import ssl
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Self, cast

import uvloop

from tests.system.spawning import ROOT, base_environment

BODY = b'{"timeoutInSeconds":14,"parameters":{"username":"admin","password":"admin","vlan":534,"interfaces":[1,2,3,4]}}'
MOST_REQUESTS = 2_000_000
TICK_SECONDS = 0.005


@dataclass(frozen=True)
class Load:
    """What to send: GETs of `paths`, or without any POSTs, each for a new device (or all for the one `device`).

    Ends after `count` requests or after `warmup` + `seconds`; what is sent during the warm-up is not counted. With a
    `rate` (requests a second) requests begin by the clock, otherwise each connection sends as soon as it is answered.
    `ca_file` speaks TLS with whom these certificates vouch for.
    """

    port: int
    connections: int
    count: int = 0
    seconds: float = 0.0
    warmup: float = 0.0
    rate: float = 0.0
    prefix: str = "BENCH"
    device: str = ""
    token: str = ""
    ca_file: str = ""
    paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What came of it; `began` and `ended` are Unix times of the first counted request and of the last answer."""

    count: int
    began: float
    ended: float
    cpu_seconds: float
    codes: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / (self.ended - self.began)


class Generator:
    """A load that runs in a process of its own; `result` waits for its end."""

    def __init__(self, load: Load) -> None:
        self._limit = load.warmup + load.seconds + (load.count / load.rate if load.rate else 0) + 300
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.load"],
            cwd=ROOT,
            env=base_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asdict(load)))
        self._process.stdin.close()
        self._process.stdin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()

    def result(self, *, code: int = 200) -> Result:
        """Wait for the result; raise unless every answer had this code."""
        output, _ = self._process.communicate(timeout=self._limit)
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with code {self._process.returncode}")
        result = Result(**json.loads(output))
        if set(result.codes) != {str(code)}:
            raise RuntimeError(f"expected only answers of {code}, got {result.codes}")
        return result


def generate(load: Load, *, code: int = 200) -> Result:
    """Run a load to its end."""
    with Generator(load) as generator:
        return generator.result(code=code)


def percentile(ordered: list[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of the ordered values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Connection(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, on_answer: Callable[["Connection", bytes], None]) -> None:
        self.sent = 0.0
        self._on_answer = on_answer
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # type: ignore[explicit-override]
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one but for its bases.

    def send(self, request: bytes) -> None:
        """Send a request; the last one has been answered."""
        assert self._transport
        self.sent = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """End the connection."""
        assert self._transport
        self._transport.close()

    def data_received(self, data: bytes) -> None:  # type: ignore[explicit-override]
        data = self._rest + data
        end = data.find(b"\r\n\r\n")
        if end > 0:
            at = data.find(b"Content-Length: ") + 16
            if len(data) >= end + 4 + int(data[at : data.find(b"\r", at)]):
                self._rest = b""
                self._on_answer(self, data[9:12])
                return
        self._rest = data

    def connection_lost(self, exc: Exception | None) -> None:  # type: ignore[explicit-override]
        self._on_answer(self, b"lost")


class Run:
    """One load, from the first connection to the last answer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = requests(load)
        self._left = min(load.count or MOST_REQUESTS, MOST_REQUESTS)
        self._until = math.inf
        self._count_from = 0.0
        self._cpu_before = 0.0
        self._latencies: list[float] = []
        self._codes: Counter[bytes] = Counter()
        self._busy = 0
        self._free: deque[Connection] = deque()
        self._done = asyncio.Event()
        self._closing = False

    async def run(self) -> Result:
        """Run it."""
        load, loop = self._load, asyncio.get_running_loop()
        connections = []
        tls = ssl.create_default_context(cafile=load.ca_file) if load.ca_file else None
        for _ in range(load.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self._on_answer), "127.0.0.1", load.port, ssl=tls
            )
            connections.append(connection)
        began, started = time.time() + load.warmup, time.perf_counter()
        self._count_from = started + load.warmup
        self._until = self._count_from + load.seconds if load.seconds else math.inf
        self._begin_to_count()
        loop.call_later(load.warmup, self._begin_to_count)
        if load.rate:
            self._free.extend(connections)
            await self._pace(started)
        else:
            for connection in connections:
                self._send(connection)
        await self._done.wait()
        ended, cpu_seconds = time.time(), time.process_time() - self._cpu_before
        if load.seconds:
            ended = min(ended, began + load.seconds)
        self._closing = True
        for connection in connections:
            connection.close()
        ordered = sorted(self._latencies)
        p50, p95, p99 = (1000 * percentile(ordered, share) for share in (0.5, 0.95, 0.99))
        return Result(
            count=len(ordered),
            began=began,
            ended=ended,
            cpu_seconds=cpu_seconds,
            codes={code.decode(): count for code, count in self._codes.items()},
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=1000 * ordered[-1] if ordered else 0.0,
        )

    def _begin_to_count(self) -> None:
        self._cpu_before = time.process_time()

    async def _pace(self, started: float) -> None:
        sent = 0
        while self._left and time.perf_counter() < self._until:
            due = int((time.perf_counter() - started) * self._load.rate) + 1 - sent
            for _ in range(min(due, self._left, len(self._free))):
                self._send(self._free.popleft())
                sent += 1
            await asyncio.sleep(TICK_SECONDS)
        while self._busy:
            await asyncio.sleep(TICK_SECONDS)
        self._done.set()

    def _send(self, connection: Connection) -> None:
        if self._left > 0 and time.perf_counter() < self._until:
            self._left -= 1
            self._busy += 1
            connection.send(next(self._requests))
        elif not self._busy:
            self._done.set()

    def _on_answer(self, connection: Connection, code: bytes) -> None:
        if self._closing:
            return
        now = time.perf_counter()
        self._busy -= 1
        self._codes[code] += 1
        if self._count_from <= now <= self._until:
            self._latencies.append(now - connection.sent)
        if code == b"lost":
            self._done.set()
        elif self._load.rate:
            self._free.append(connection)
        else:
            self._send(connection)


def requests(load: Load) -> Iterator[bytes]:
    """Make the requests, one after the other."""
    if load.paths:
        yield from cycle([f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode() for path in load.paths])
    head = b"POST /api/v1/equipment/cpe/%s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    if load.token:
        head += b"Authorization: Bearer %s\r\n" % load.token.encode()
    tail = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    for number in range(MOST_REQUESTS):
        serial = load.device.encode() or b"%s%08d" % (load.prefix.encode(), number)
        yield head % serial + tail


def main() -> None:
    """Read the load, run it, print the result."""
    load = Load(**json.loads(sys.stdin.read()))
    print(json.dumps(asdict(uvloop.run(Run(load).run()))))


if __name__ == "__main__":
    main()
