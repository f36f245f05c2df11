"""The client of `POST /leases`: no call of service A begins before the database has written down that it does."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

import aiohttp
import structlog
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from yarl import URL

from configurator import metrics
from configurator.answers import read
from configurator.jobs import Job
from runtime.batching import Batcher
from runtime.clock import now

log = structlog.stdlib.get_logger(__name__)

BATCH = 500
GATHER_SECONDS = 0.01
"""So long a batch waits for more; next to a call of a minute nobody notices."""
TIMEOUT_SECONDS = 5.0
"""After that long a call that is granted would not begin any more."""
PAUSE_SECONDS = 0.5


class Answer(StrEnum):
    """What becomes of a wish to call service A."""

    GRANTED = "granted"
    REFUSED = "refused"
    """It is another call's, or nobody's: its message is to be forgotten."""
    UNDECIDED = "undecided"
    """Somebody holds the task's row just now; ask again."""
    UNANSWERED = "unanswered"
    """No results process answers; it may have been granted."""


LEASES = {answer: metrics.LEASES.labels(answer.value) for answer in Answer}
"""The counters, looked up once, not for each call."""
ANSWERS = {True: Answer.GRANTED, False: Answer.REFUSED, None: Answer.UNDECIDED}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)

    granted: list[bool | None]


class Leases:
    """Asks one results process at a time, in batches, one request after the other."""

    def __init__(
        self, urls: Sequence[str], token: SecretStr | None = None, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        self._urls = deque(random.sample(urls, len(urls)))
        """The one to be asked first; replicas spread over them."""
        self._failing: set[str] = set()
        """Those that did not answer when they were asked last."""
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._batcher = Batcher(
            "lease",
            self._ask_anybody,
            max_batch=BATCH,
            max_waiting=math.inf,
            timeout=math.inf,
            gather_seconds=GATHER_SECONDS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def unready(self) -> str | None:
        """What a readiness check says: None unless no results process answered when it was asked last."""
        return "results process: no leases" if len(self._failing) == len(self._urls) else None

    async def ask(self, job: Job) -> Answer:
        """Ask for a job's lease: whether its call may begin now.

        When nobody can say just now, that comes after a pause, so that asking again at once is right. Asked again after
        a grant whose answer was lost, it is granted again.
        """
        answer = await self._batcher.submit(job)
        LEASES[answer].inc()
        if answer is Answer.UNDECIDED:
            await _pause()
        elif answer is not Answer.UNANSWERED:
            metrics.LEASE_SECONDS.observe(now() - job.asked_at)
        return answer

    async def _ask_anybody(self, jobs: Sequence[Job]) -> list[Answer]:
        """Ask one results process after the other until one answers; pause when none does."""
        asked_at = now()
        for job in jobs:
            job.asked_at = min(job.asked_at, asked_at)
        attempts = ",".join(
            f'{{"taskId":"{job.task.task_id}","attempt":{job.task.attempt},"lease":"{job.lease}"}}' for job in jobs
        )
        body = f'{{"attempts":[{attempts}]}}'.encode()
        for _ in range(len(self._urls)):
            url = self._urls[0]
            try:
                granted = await self._post(url, body, len(jobs))
            except (aiohttp.ClientError, OSError, _NoAnswerError) as error:
                self._note_failure(url, str(error) if isinstance(error, _NoAnswerError) else type(error).__name__)
                self._urls.rotate(-1)
                continue
            self._note_answer(url)
            return [ANSWERS[each] for each in granted]
        await _pause()
        return [Answer.UNANSWERED] * len(jobs)

    async def _post(self, url: str, body: bytes, count: int) -> list[bool | None]:
        async with self._http.post(
            f"{url}/leases", data=body, headers=self._headers, allow_redirects=False
        ) as response:
            said = await read(response)
            if response.status != 200:
                raise _NoAnswerError(f"HTTP {response.status}")
            try:
                granted = _Body.model_validate_json(said).granted
            except ValidationError:
                raise _NoAnswerError("not an answer of the results process") from None
            if len(granted) != count:
                raise _NoAnswerError(f"{len(granted)} answers to {count} questions")
            return granted

    def _note_failure(self, url: str, reason: str) -> None:
        if url not in self._failing:
            self._failing.add(url)
            log.warning("leases.unavailable", url=_address(url), reason=reason)

    def _note_answer(self, url: str) -> None:
        if url in self._failing:
            self._failing.remove(url)
            log.info("leases.available", url=_address(url))


class _NoAnswerError(Exception):
    """A results process said something else than who may begin."""


def _address(url: str) -> str:
    """Name a results process without a password."""
    return f"{URL(url).host}:{URL(url).port}"


async def _pause() -> None:
    await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1))
