"""What a client may send, checked strictly and kept as it came."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, NoReturn, NotRequired

import pydantic_core
from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from service_b.api.errors import BadRequestError, EquipmentNotFoundError, InvalidBodyError

SERIAL = re.compile(r"[a-zA-Z0-9]{6,128}", re.ASCII)
MAX_DEPTH = 100
"""Deeper than any device's parameters; the reader of our messages takes no more than 200 levels."""
MAX_DIGITS = 4300
"""Of a whole number: Python reads no longer ones, since that takes time that grows with the square."""
MAX_FAULTS = 100
"""A body of 64 KiB can hold a thousand, and telling of all takes thirty times as much room."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ESCAPE = b"\\u"
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@with_config(strict=True, extra="allow")
class Parameters(TypedDict):
    """What service A is to set on the device. Unknown keys are passed through."""

    username: Annotated[str, Field(min_length=1)]
    password: str
    vlan: NotRequired[Annotated[int, Field(ge=1, le=4094)] | None]
    interfaces: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1024)]


Timeout = Annotated[int, Field(ge=1, le=3600)]


@with_config(strict=True, extra="ignore")
class Body(TypedDict):
    """The body of a POST. Unknown keys are ignored."""

    timeoutInSeconds: Timeout
    parameters: Parameters


class Shape:
    """What a body must be like."""

    def __init__(self, body: type, texts: Sequence[str], *, closed: bool) -> None:
        self._validate = TypeAdapter(body).validator.validate_python
        # The keys whose text is stored: PostgreSQL and UTF-8 must be able to hold it.
        self._texts = texts
        # The keys that there may be, where others are refused; else those are ignored.
        self._known = frozenset(body.__annotations__) if closed else None

    def check(self, value: Any, raw: bytes) -> None:
        """Raise `InvalidBodyError` unless what was read of `raw` is like that."""
        faults = [*self._unknown(value), *self._invalid(value)]
        if not faults and ESCAPE in raw:  # The only way in for a NUL or half a surrogate pair.
            places = (place for key in self._texts if key in value for place in _unstorable(value[key], [key]))
            faults = [
                {"loc": loc, "msg": "String should hold no NUL and no lone surrogate"}
                for loc in islice(places, MAX_FAULTS)
            ]
        if faults:
            raise InvalidBodyError(faults)

    def _unknown(self, value: Any) -> list[dict[str, Any]]:
        """Find out whether there are keys that must not be. They are not named: no echo."""
        if self._known is None or not isinstance(value, dict) or self._known.issuperset(value):
            return []
        return [{"loc": [], "msg": f"Only these keys may be here: {', '.join(sorted(self._known))}"}]

    def _invalid(self, value: Any) -> list[dict[str, Any]]:
        try:
            self._validate(value)
        except ValidationError as error:
            return [
                {"loc": list(fault["loc"]), "msg": fault["msg"]}
                for fault in error.errors(include_input=False, include_context=False, include_url=False)[:MAX_FAULTS]
            ]
        return []


LEGACY = Shape(Body, ["parameters"], closed=False)


@dataclass(frozen=True, slots=True)
class ConfigureRequest:
    """A good request. `parameters` is JSON text: what the client sent, without a null `vlan`."""

    timeout_seconds: int
    parameters: str = field(repr=False)


def parse_serial(text: str) -> str:
    """Check the id of a device; anything else is a device that nobody knows."""
    if not SERIAL.fullmatch(text):
        raise EquipmentNotFoundError
    return text


def parse_request(raw: bytes) -> ConfigureRequest:
    """Check a body: 400 when it is not JSON, 422 with the list of faults when it is not what we take."""
    value = decode(raw)
    # The original task's text writes the parameters with brackets around them.
    if isinstance(value, dict) and isinstance(listed := value.get("parameters"), list) and len(listed) == 1:
        value["parameters"] = listed[0]
    LEGACY.check(value, raw)
    return ConfigureRequest(value["timeoutInSeconds"], encode_parameters(value["parameters"]))


def encode_parameters(parameters: dict[str, Any]) -> str:
    """Return parameters that were checked as JSON text, without a null `vlan`."""
    if parameters.get("vlan", 0) is None:
        del parameters["vlan"]
    text = pydantic_core.to_json(parameters, inf_nan_mode="constants").decode()
    if "Infinity" in text:
        _refuse_infinite(parameters)
    return text


def decode(raw: bytes) -> Any:
    """Read JSON: 400 when it is none.

    The standard library is asked where the quicker reader gives up, and where an escape may be a lone surrogate:
    pydantic refuses that as if it were no JSON, but it must become a 422 with its place, not a 400.
    """
    raw = raw.removeprefix(BYTE_ORDER_MARK)
    try:
        if ESCAPE not in raw:
            return _not_too_deep(raw, pydantic_core.from_json(raw, allow_inf_nan=False))
    except ValueError:
        pass  # The standard library has the last word.
    try:
        return _not_too_deep(raw, json.loads(raw.decode(), parse_constant=_refuse_constant, parse_int=_int))
    except (ValueError, RecursionError):
        raise BadRequestError(f"The body must be JSON in UTF-8, at most {MAX_DEPTH} levels deep") from None


def _not_too_deep(raw: bytes, value: Any) -> Any:
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError
    return value


def _refuse_infinite(parameters: dict[str, Any]) -> None:
    try:
        json.dumps(parameters, allow_nan=False)
    except ValueError:  # 1e999
        raise BadRequestError("The body must be JSON without infinite numbers") from None


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return depth == 0 or any(
        _is_deeper(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise BadRequestError(f"The body must be JSON without whole numbers of more than {MAX_DIGITS:,} digits")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _unstorable(value: Any, loc: list[str | int]) -> Iterator[list[str | int]]:
    """Find strings that PostgreSQL or UTF-8 cannot hold. Names unknown to us are not part of a location: no echo."""
    match value:
        case str():
            if UNSTORABLE.search(value):
                yield loc
        case dict():
            for key, item in value.items():
                if UNSTORABLE.search(key):
                    yield loc
                yield from _unstorable(item, [*loc, key] if key in Parameters.__annotations__ else loc)
        case list():
            for position, item in enumerate(value):
                yield from _unstorable(item, [*loc, position])
