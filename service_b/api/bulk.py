"""Many tasks in one request: lines of JSON come, each is stored and answered by itself (application/x-ndjson).

What is answered is stored, whatever becomes of the request. Lines that got no answer may be sent again: with an
`idempotencyKey` at no risk.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from aiohttp import web

from runtime.streams import End, Line, LineAnswer, LineStream
from service_b.api.envelopes import parse_line
from service_b.api.errors import (
    ApiError,
    BadRequestError,
    CompressedBodyError,
    EquipmentNotFoundError,
    SilentClientError,
    StoppingError,
    TooLargeError,
    UnavailableError,
)
from service_b.api.keys import KEY, make_once
from service_b.api.parts import HORIZON
from service_b.api.problems import problem
from service_b.api.reading import MAX_BODY_BYTES, is_compressed
from service_b.api.submitting import content_of, store
from service_b.api.trail import Caller
from service_b.storage import StorageRefusedError, StorageUnavailableError

log = structlog.stdlib.get_logger(__name__)

KIND = "application/x-ndjson"
SILENCE_SECONDS = 60.0
"""How long a client may send nothing before it has sent its last line."""
MAX_FAULTS = 10
SLOTS = 20
"""So many batches of lines are stored at once, of all streams together: more would not be any quicker."""


class Bulk:
    """What the streams of a process share."""

    def __init__(self, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.silence_seconds = silence_seconds
        self.slots = asyncio.Semaphore(SLOTS)
        self.stopping = asyncio.Event()

    async def stop(self, _: web.Application) -> None:
        """Take no more lines."""
        self.stopping.set()


BULK = web.AppKey("BULK", Bulk)


async def make_tasks(request: web.Request, caller: Caller | None) -> web.StreamResponse:
    """Store a task for each line, and answer each with a line once it is committed."""
    if is_compressed(request.headers):
        raise CompressedBodyError
    if KEY in request.headers:
        raise BadRequestError("Each line brings a key of its own, as idempotencyKey")
    bulk, codes = request.app[BULK], Counter[int]()
    answer = LineAnswer(headers={"Content-Type": KIND})
    await answer.prepare(request)
    stream = LineStream(
        request,
        partial(_answer_lines, request, caller, codes),
        slots=bulk.slots,
        stopping=bulk.stopping,
        max_line_bytes=MAX_BODY_BYTES,
        silence_seconds=bulk.silence_seconds,
    )
    end = None
    try:
        end = await stream.run(answer)
        if end is not End.COMPLETE:
            answer.force_close()
            await answer.write(_write_line(stream.taken + 1, _last_words(end)))
        await answer.write_eof()
    except ConnectionError:
        end = End.BROKEN
    log.info(
        "bulk.ended",
        token=caller and caller.access.name,
        end=end.value,
        lines=stream.taken,
        **{f"code_{code}": count for code, count in sorted(codes.items())},
    )
    return answer


async def _answer_lines(
    request: web.Request, caller: Caller | None, codes: Counter[int], first: int, lines: Sequence[Line]
) -> bytes:
    """Answer all of a batch but empty lines."""
    numbered = [(number, line) for number, line in enumerate(lines, first) if line is None or line.strip()]
    told = await asyncio.gather(*(_answer_line(request, caller, line) for _, line in numbered))
    codes.update(each["code"] for each in told)
    return b"".join(_write_line(number, each) for (number, _), each in zip(numbered, told, strict=True))


async def _answer_line(request: web.Request, caller: Caller | None, line: Line) -> dict[str, Any]:
    try:
        return await _store(request, caller, line)
    except ApiError as error:
        return _refusal(error)
    except StorageUnavailableError:
        return _refusal(UnavailableError())
    except StorageRefusedError:
        return _refusal(ApiError())
    except Exception:
        log.exception("bulk.bug")
        return _refusal(ApiError())


async def _store(request: web.Request, caller: Caller | None, line: Line) -> dict[str, Any]:
    if line is None:
        raise TooLargeError
    wanted, key = parse_line(line, request.app[HORIZON])
    if caller and not caller.access.covers(wanted.equipment_id):
        raise EquipmentNotFoundError
    of = wanted.equipment_id, wanted.configure
    once = make_once(key, request, *content_of(*of, wanted.wishes)) if key is not None else None
    task, is_replayed = await store(request, caller, once, *of, wishes=replace(wanted.wishes, bulk=True))
    return {"code": 202, "id": task} | ({"replayed": True} if is_replayed else {})


def _refusal(error: ApiError) -> dict[str, Any]:
    told = {"code": error.code} | problem(error)
    # A whole body may tell of more; here it would be of each line.
    return told | {"errors": error.errors[:MAX_FAULTS]} if error.errors else told


def _last_words(end: End) -> dict[str, Any]:
    """Tell why there are no answers to further lines."""
    match end:
        case End.SILENT:
            return _refusal(SilentClientError())
        case End.STOPPED:
            return _refusal(StoppingError())
        case _:
            return _refusal(BadRequestError("The body did not arrive"))


def _write_line(number: int, told: dict[str, Any]) -> bytes:
    return json.dumps({"line": number} | told, separators=(",", ":")).encode() + b"\n"
