"""The two wire messages: a task on its way to service A, and what came of one attempt."""

from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

AttemptNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, Field(ge=0, le=10**8, allow_inf_nan=False)]


class _AnyObject(TypedDict):
    """A JSON object whose content is checked to be JSON, and not built."""


_check = TypeAdapter(_AnyObject).validator.validate_json


def _read_object_text(value: object) -> object:
    """Take the text of exactly one JSON object, so that it can stand in other JSON as it is.

    Earlier versions sent the object itself: it becomes text again.
    """
    if isinstance(value, dict):
        return pydantic_core.to_json(value).decode()
    if isinstance(value, str) and not is_object_text(value):
        raise ValueError("should be the text of a JSON object")  # Without the text.
    return value


def is_object_text(text: str) -> bool:
    """Tell whether a text is that of exactly one JSON object."""
    try:
        _check(text)
    except ValidationError:
        return False
    return True


ObjectText = Annotated[str, BeforeValidator(_read_object_text)]


class DecodeError(Exception):
    """A message that cannot be read; it keeps the raw bytes for the dead-letter queue."""

    def __init__(self, body: bytes, reason: str) -> None:
        super().__init__(reason)
        self.body = body
        self.reason = reason


class Message(BaseModel):
    """A frozen JSON message. Fields unknown to this version are ignored, so that two versions run side by side."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1
    task_id: UUID
    attempt: AttemptNumber

    @property
    def message_id(self) -> str:
        """Unique per attempt."""
        return f"{self.task_id}:{self.attempt}"

    def encode(self) -> bytes:
        """Return the JSON bytes of this message."""
        return self.__pydantic_serializer__.to_json(self)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Read a message; raise `DecodeError`, which names the fields at fault but none of their values."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            faults = error.errors(include_input=False, include_context=False, include_url=False)
            reason = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
            raise DecodeError(body, reason[:500]) from None


class ConfigureTask(Message):
    """Configure one device: one attempt at one task. `parameters` is JSON text, as the client's request was stored.

    Version 2 is version 1 for readers that ask for a lease; one that asks for none dead-letters it. So does a reader
    that cannot open sealed parameters with version 3: it would hand them to service A as they are. Version 4 is sealed
    for another task, `sealed_for`, which this one tries again.
    """

    v: Literal[1, 2, 3, 4] = 2  # type: ignore[assignment]
    equipment_id: str
    timeout_in_seconds: int
    time_limit_seconds: Seconds
    parameters: ObjectText = Field(repr=False)
    sealed_for: UUID | None = Field(None, exclude_if=lambda task: task is None)


class OutcomeKind(StrEnum):
    """What came of an attempt."""

    SUCCESS = "success"
    NOT_FOUND = "not_found"
    FAILED = "failed"
    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"
    """The call surely never began: nothing was configured."""
    UNKNOWN = "unknown"
    """The call began, and no answer of A's came back."""
    UNOPENED = "unopened"
    """The parameters were sealed for another task, or tampered with: no call was made, and none can be."""
    LOST = "lost"
    """No outcome came in time: the process that made the call is gone, or was cut off."""


class Outcome(Message):
    """What came of one attempt, and how long service A may still be at work on the device.

    `lease`: what the call was begun under; one without a lease was never allowed to begin.
    `hold_seconds`: the device must not be configured again before this has passed.
    `retry_after_seconds`: what service A asked for in its `Retry-After`; 0: handed back without a call.
    """

    kind: OutcomeKind
    lease: UUID | None = None
    reason: str = ""
    hold_seconds: Seconds = 0
    retry_after_seconds: Seconds | None = None
