"""The clients: they submit, poll, wait, cancel, retry, give up and come back, and write down what they saw."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.chaos.history import History
from tests.chaos.service_a import SLOW

TIMEOUT_SECONDS = 7.0
SHARED_DEVICES = 40
MAX_OPEN = 300
"""Clients at a time; beyond that they wait, as do all while the system is `MAX_BACKLOG_SECONDS` behind."""
KEYED, TWICE, CANCELLING, RETRYING, MISTAKEN, WAITING = 0.15, 0.3, 0.05, 0.3, 0.02, 0.3
"""How many submit under a key, and of those so at once through two processes; take back what they have submitted; try
again what has failed, or what has not; and wait for an end instead of asking now and then."""
WAIT_SECONDS = 3
SENT_AGAIN = 6
"""So often one is sent again under its key whose answer did not come."""
MAX_BACKLOG_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task that a client holds the id of."""

    device: str
    task: str


class Workload:
    """Clients of several web processes, together `rate` submissions a second.

    A time-out or a lost connection is "unknown", never failed: the task may have been stored.
    """

    def __init__(self, urls: Sequence[str], history: History, seed: int, rate: float) -> None:
        self._urls = urls
        self._history = history
        self._random = random.Random(seed)
        self._rate = rate
        self._name = f"{seed}"
        self._count = 0
        self._recent: deque[Accepted] = deque(maxlen=5000)
        self._clients: set[asyncio.Task[None]] = set()
        self._patient: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._behind = False
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        )

    async def run(self) -> None:
        """Submit at the rate, whatever the answers, until stopped."""
        arrivals = 0.0
        before = time.monotonic()
        while not self._stopped.is_set():
            now = time.monotonic()
            arrivals = min(arrivals + (now - before) * self._rate, self._rate)
            before = now
            while arrivals >= 1 and len(self._clients) < MAX_OPEN and not self._behind:
                arrivals -= 1
                self._spawn(self._client())
                if self._recent and self._random.random() < 0.05:
                    self._spawn(self._come_back())
            await asyncio.sleep(0.02)

    def note_backlog(self, unfinished: int) -> None:
        """Hear how many tasks have not ended: this is a test of faults, not of endless overload."""
        self._behind = unfinished > self._rate * MAX_BACKLOG_SECONDS

    async def stop(self) -> None:
        """Submit no more, and wait until every client has gone."""
        self._stopped.set()
        while crowd := self._clients | self._patient:
            await asyncio.wait(crowd)

    async def look_again(self, count: int) -> None:
        """Read some tasks once more, from any process, when all is over."""
        known = self._random.sample(self._recent, min(count, len(self._recent)))
        for start in range(0, len(known), 50):
            await asyncio.gather(*(self._read(accepted) for accepted in known[start : start + 50]))

    async def close(self) -> None:
        """Close the connections, and forget clients that are still there."""
        self._stopped.set()
        crowd = self._clients | self._patient
        for client in crowd:
            client.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await self._http.close()

    def _spawn(self, client: Coroutine[Any, Any, None], *, patient: bool = False) -> None:
        crowd = self._patient if patient else self._clients
        task = asyncio.create_task(client)
        crowd.add(task)
        task.add_done_callback(crowd.discard)

    def _device(self) -> str:
        """Mostly a device of its own; some share one, and some are slow."""
        chance = self._random.random()
        if chance < 0.04:
            return f"SHARED{self._random.randrange(SHARED_DEVICES):04}"
        if chance < 0.045:
            return f"{SLOW}SHARED{self._random.randrange(3)}"
        return f"{SLOW if chance < 0.06 else 'CPE'}{self._name}x{self._count:07}"

    async def _client(self) -> None:
        accepted = await self._submit()
        if accepted is None:
            return
        self._recent.append(accepted)
        if self._random.random() < CANCELLING:
            self._spawn(self._cancel(accepted), patient=True)
        if self._random.random() < 0.5:
            return
        self._spawn(self._wait(accepted), patient=True)

    async def _wait(self, accepted: Accepted) -> None:
        for _ in range(self._random.choice((1, 1, 2, 4, 8))):
            wait = WAIT_SECONDS if self._random.random() < WAITING else 0
            if not wait:
                await asyncio.sleep(self._random.uniform(0.2, 2))
            if await self._read(accepted, wait) or self._stopped.is_set():
                return

    async def _cancel(self, accepted: Accepted) -> None:
        """Take a task back, mostly before its call; when in doubt once more, as a person would."""
        for _ in range(2):
            await asyncio.sleep(self._random.choice((0, self._random.uniform(0, 1))))
            began = time.monotonic()
            status, _ = await self._ask("POST", f"{self._url()}/api/v1/tasks/{accepted.task}/cancel", None)
            self._history.write("cancel", task=accepted.task, began=began, status=status)
            if status is not None:
                return

    async def _retry(self, accepted: Accepted) -> None:
        """Try again what has failed; one that sent this twice, of which an answer was lost, made two."""
        key = f"again-{accepted.task}"
        for _ in range(SENT_AGAIN):
            url = f"{self._url()}/api/v1/tasks/{accepted.task}/retry"
            status, answer = await self._ask("POST", url, None, {"Idempotency-Key": key})
            self._history.write("retry", task=accepted.task, status=status, made=answer.get("id"))
            if status not in (None, 503) or self._stopped.is_set():
                return
            await asyncio.sleep(self._random.uniform(0.1, 1))

    async def _come_back(self) -> None:
        accepted = self._random.choice(self._recent)
        if await self._read(accepted) and not self._stopped.is_set():
            await asyncio.sleep(self._random.uniform(0, 1))
            await self._read(accepted)

    async def _submit(self) -> Accepted | None:
        self._count += 1
        marker, device = f"{self._name}-{self._count}", self._device()
        self._history.write("submit", marker=marker, device=device)
        if self._random.random() >= KEYED:
            return await self._post(marker, device)
        # Under a key one may send again what may be stored already, and also at once.
        for _ in range(SENT_AGAIN):
            times = 2 if self._random.random() < TWICE else 1
            answers = await asyncio.gather(*(self._post(marker, device, marker) for _ in range(times)))
            if told := [answer for answer in answers if answer]:
                return told[0]
            if self._stopped.is_set():
                break
            await asyncio.sleep(self._random.uniform(0.1, 1))
        return None

    async def _post(self, marker: str, device: str, key: str | None = None) -> Accepted | None:
        url = f"{self._url()}/api/v1/equipment/cpe/{device}"
        body = {"timeoutInSeconds": 1, "parameters": {"username": marker, "password": "secret", "interfaces": [1]}}
        status, answer = await self._ask("POST", url, body, {"Idempotency-Key": key} if key else None)
        task = answer.get("taskId") if status == 200 else None
        self._history.write("submitted", marker=marker, device=device, status=status, task=task, key=key)
        return Accepted(device, task) if task else None

    async def _read(self, accepted: Accepted, wait: int = 0) -> bool:
        """Read a status, or wait for the last one; tell whether it is final."""
        began = time.monotonic()
        url = f"{self._url()}/api/v1/equipment/cpe/{accepted.device}/task/{accepted.task}"
        status, answer = await self._ask("GET", url, None, {"Prefer": f"wait={wait}"} if wait else None)
        says = answer.get("message") if status == 404 else answer.get("code")
        self._history.write("read", task=accepted.task, began=began, status=status, says=says, wait=wait)
        is_configured = status == 200 and says == 200
        again = RETRYING if status == 500 else MISTAKEN if is_configured else 0
        if not self._stopped.is_set() and self._random.random() < again:
            self._spawn(self._retry(accepted), patient=True)
        return is_configured or status in (404, 500)

    def _url(self) -> str:
        return self._random.choice(self._urls)

    async def _ask(
        self, method: str, url: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int | None, dict[str, Any]]:
        try:
            async with self._http.request(method, url, json=body, headers=headers) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None, {}
