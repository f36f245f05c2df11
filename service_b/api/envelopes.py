"""What a client may send to have a task made, beyond the legacy body."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from service_b.api.bodies import (
    SERIAL,
    Body,
    ConfigureRequest,
    Parameters,
    Shape,
    Timeout,
    decode,
    encode_parameters,
)
from service_b.api.errors import InvalidBodyError
from service_b.api.times import parse_time
from service_b.submission import Wishes


def _check_time(text: str) -> str:
    parse_time(text)
    return text


Time = Annotated[str, AfterValidator(_check_time)]


@with_config(strict=True)
class Envelope(Body, TypedDict):
    """The body of `POST /api/v1/tasks`."""

    equipmentId: Annotated[str, Field(pattern=f"^{SERIAL.pattern}$")]
    externalId: NotRequired[Annotated[str, Field(min_length=1, max_length=128)] | None]
    notBefore: NotRequired[Time | None]
    notAfter: NotRequired[Time | None]


@with_config(strict=True)
class Line(Envelope, TypedDict):
    """One of many bodies in one request, each with a key of its own."""

    idempotencyKey: NotRequired[str]


@with_config(strict=True)
class Retry(TypedDict):
    """The body of a retry: what is to be otherwise than it was."""

    timeoutInSeconds: NotRequired[Timeout]
    parameters: NotRequired[Parameters]


RETRY = Shape(Retry, ["parameters"], closed=True)
ENVELOPE = Shape(Envelope, ["externalId", "parameters"], closed=True)
LINE = Shape(Line, ["externalId", "parameters"], closed=True)


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A good request for a task."""

    equipment_id: str
    configure: ConfigureRequest
    wishes: Wishes


def parse_envelope(raw: bytes, horizon: timedelta) -> TaskRequest:
    """Check the body of a task, as `bodies.parse_request` does. Its times may be as far ahead as `horizon`."""
    value = decode(raw)
    ENVELOPE.check(value, raw)
    return _read(value, horizon)


def parse_line(raw: bytes, horizon: timedelta) -> tuple[TaskRequest, str | None]:
    """Check one of many bodies, as `parse_envelope` does; return its key, too."""
    value = decode(raw)
    LINE.check(value, raw)
    return _read(value, horizon), value.get("idempotencyKey")


def _read(value: dict[str, Any], horizon: timedelta) -> TaskRequest:
    not_before, not_after = read_times(value, horizon)
    return TaskRequest(
        value["equipmentId"],
        ConfigureRequest(value["timeoutInSeconds"], encode_parameters(value["parameters"])),
        Wishes(value.get("externalId"), not_before, not_after),
    )


def parse_retry(raw: bytes) -> tuple[int | None, str | None]:
    """Check the body of a retry, which may be empty; return the time limit and the parameters (JSON text) it gives."""
    if not raw:
        return None, None
    value = decode(raw)
    RETRY.check(value, raw)
    given = value.get("parameters")
    return value.get("timeoutInSeconds"), None if given is None else encode_parameters(given)


def read_times(value: dict[str, Any], horizon: timedelta) -> tuple[datetime | None, datetime | None]:
    """Return `notBefore` and `notAfter` of a body whose shape is right: 422 for those that no task could keep.

    A `notAfter` that has passed is no fault here: this may be a request that was good when it was sent first.
    """
    times = {key: parse_time(text) for key in ("notBefore", "notAfter") if (text := value.get(key)) is not None}
    not_before, not_after = times.get("notBefore"), times.get("notAfter")
    if faults := list(_faults(not_before, not_after, datetime.now(UTC), horizon)):
        raise InvalidBodyError(faults)
    return not_before, not_after


def _faults(
    not_before: datetime | None, not_after: datetime | None, now: datetime, horizon: timedelta
) -> Iterator[dict[str, Any]]:
    for key, time in ("notBefore", not_before), ("notAfter", not_after):
        if time and time > now + horizon:
            yield {"loc": [key], "msg": f"Time should be at most {horizon / timedelta(days=1):g} days ahead"}
    if not_after and not_before and not_after <= not_before:
        yield {"loc": ["notAfter"], "msg": "Time should be later than notBefore"}
