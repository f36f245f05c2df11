"""`POST /leases`: the configurators ask here before each call of service A (section 7 of the contract)."""

from collections.abc import Sequence
from hmac import compare_digest
from itertools import chain, islice
from typing import Annotated
from uuid import UUID

import asyncpg
import structlog
from aiohttp import web
from pydantic import Field, SecretStr, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from messaging.messages import AttemptNumber
from runtime.answers import Answer, json_error
from runtime.batching import Batcher, BatcherError
from service_b import metrics
from service_b.database import STORAGE_ERRORS
from service_b.tasks import leases
from service_b.tasks.clock import Clock

log = structlog.stdlib.get_logger(__name__)

MAX_ATTEMPTS = 1000
"""Of one request."""
MAX_BATCH = 4
"""Requests for one statement."""
MAX_WAITING = 200
TIMEOUT_SECONDS = 4.0
"""The contract promises an answer within 5 s."""
RETRY_AFTER = {"Retry-After": "1"}

WORDS = {leases.Answer.GRANTED: b"true", leases.Answer.HELD: b"null"}
"""All other answers are `false`."""

Asked = list[tuple[UUID, int, UUID]]


@with_config(extra="ignore")
class Attempt(TypedDict):
    """A call that somebody wants to make."""

    taskId: UUID
    attempt: Annotated[AttemptNumber, Field(strict=True)]
    lease: UUID


@with_config(extra="ignore")
class Body(TypedDict):
    """The body of a request."""

    attempts: list[Attempt]


_read = TypeAdapter(Body).validator.validate_json


class Leases:
    """Asks the database for the leases of concurrent requests together."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        internal: Clock,
        token: SecretStr | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._pool = pool
        self._internal = internal
        # What who asks must send; anybody may ask without one.
        self._authorization = f"Bearer {token.get_secret_value()}".encode() if token else None
        self._batcher: Batcher[Asked, Sequence[leases.Answer]] = Batcher(
            "lease", self._grant, max_batch=MAX_BATCH, max_waiting=MAX_WAITING, timeout=timeout_seconds
        )

    async def answer(self, request: web.Request) -> Answer:
        """Answer 200 `{"granted": [...]}`: for each attempt, in order, true, false, or null: ask again.

        Who does not send the token gets 401. What cannot be read is 400, 413 or 422; 503 while the database is away,
        and a lease may be granted all the same.
        """
        if self._authorization and not compare_digest(_authorization(request), self._authorization):
            return _refuse(401, "LEASE_TOKEN is needed", {"WWW-Authenticate": "Bearer"})
        return await self._answer(request)

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._batcher.close()

    async def _answer(self, request: web.Request) -> Answer:
        try:
            asked = _parse(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refuse(413, "The body is too large")
        except ValidationError as error:
            fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
            if fault["type"] == "json_invalid":
                return _refuse(400, "The body must be JSON")
            return _refuse(422, f"{'.'.join(map(str, ('body', *fault['loc'])))}: {fault['msg']}")
        if len(asked) > MAX_ATTEMPTS:
            return _refuse(413, f"At most {MAX_ATTEMPTS:,} attempts at once")
        try:
            answers = await self._batcher.submit(asked) if asked else []
        except (*STORAGE_ERRORS, BatcherError) as error:
            log.warning("leases.storage_unavailable", attempts=len(asked), error=repr(error))
            return _refuse(503, "The storage is unavailable, try again", RETRY_AFTER)
        return Answer(200, b'{"granted":[%s]}' % b",".join([WORDS.get(answer, b"false") for answer in answers]))

    async def _grant(self, batch: Sequence[Asked]) -> Sequence[Sequence[leases.Answer]]:
        granted = await leases.grant(self._pool, list(chain.from_iterable(batch)), self._internal.at_least())
        for answer in leases.Answer:
            if number := granted.count(answer):
                metrics.LEASES.labels(answer.value).inc(number)
        answers = iter(granted)
        return [list(islice(answers, len(asked))) for asked in batch]


def _authorization(request: web.Request) -> bytes:
    return request.headers.get("Authorization", "").encode(errors="surrogateescape")


def _parse(body: bytes) -> Asked:
    return [(attempt["taskId"], attempt["attempt"], attempt["lease"]) for attempt in _read(body)["attempts"]]


def _refuse(code: int, message: str, headers: dict[str, str] | None = None) -> Answer:
    return json_error(code, {"code": code, "message": message}, headers)
