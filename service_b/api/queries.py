"""What a client may ask a list for: filters, the size of a page, and where the page before has ended."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, TypeVar, get_args
from uuid import UUID

from multidict import MultiMapping

from service_b.api.bodies import SERIAL, UNSTORABLE
from service_b.api.errors import BadRequestError, InvalidBodyError
from service_b.api.times import parse_time
from service_b.listings import Filters, State

T = TypeVar("T")

DEFAULT_LIMIT, MAX_LIMIT = 50, 500
STATES: Mapping[str, State] = {state: state for state in get_args(State)}


@dataclass(frozen=True, slots=True)
class Query:
    """A good question for a page."""

    filters: Filters
    # No task belongs to a campaign.
    campaign: str | None
    limit: int
    # The id that the page before has ended with.
    before: UUID | None


def parse_query(sent: MultiMapping[str], device: str | None = None) -> Query:
    """Check the query of a list: 422 with the list of faults, 400 for a cursor that is not one of this list.

    `device`: whose tasks they are, where the path has said it.
    """
    faults: list[dict[str, Any]] = []
    known = {"state", "createdFrom", "createdTo", "limit", "cursor"}
    known |= {"equipmentId", "externalId", "campaign"} if device is None else set()
    if not known.issuperset(sent):
        faults.append({"loc": [], "msg": f"Only these parameters may be here: {', '.join(sorted(known))}"})

    def parse(name: str, parse_value: Callable[[str], T]) -> T | None:
        if name not in known or name not in sent:
            return None
        try:
            if len(values := sent.getall(name)) > 1:
                raise ValueError("should be given once")
            return parse_value(values[0])
        except ValueError as error:
            faults.append({"loc": [name], "msg": f"Value {error}"})
            return None

    filters = Filters(
        equipment_id=parse("equipmentId", _parse_serial),
        state=parse("state", _parse_state),
        external_id=parse("externalId", _parse_text),
        created_from=parse("createdFrom", _parse_time),
        created_to=parse("createdTo", _parse_time),
    )
    campaign = parse("campaign", _parse_text)
    limit = parse("limit", _parse_limit) or DEFAULT_LIMIT
    cursor = parse("cursor", str)
    if faults:
        raise InvalidBodyError(faults)
    filters = filters if device is None else replace(filters, equipment_id=device)
    return Query(filters, campaign, limit, None if cursor is None else _read_cursor(cursor, filters))


def make_cursor(last: UUID, filters: Filters) -> str:
    """Tell where a page has ended, for the next one with the same filters."""
    return urlsafe_b64encode(last.bytes + _digest(filters)).decode()


def _read_cursor(cursor: str, filters: Filters) -> UUID:
    try:
        read = urlsafe_b64decode(cursor)
    except ValueError:
        read = b""
    if make_cursor(UUID(bytes=read[:16].ljust(16)), filters) != cursor:
        raise BadRequestError("The cursor is not one of this list: a cursor belongs to its filters")
    return UUID(bytes=read[:16])


def _digest(filters: Filters) -> bytes:
    """Tell filters apart. That is no secret: whoever makes a cursor of his own gets a page that he may see anyway."""
    return blake2b(repr(astuple(filters)).encode(), digest_size=8).digest()


def _parse_serial(text: str) -> str:
    if not SERIAL.fullmatch(text):
        raise ValueError("should be 6 to 128 letters and digits")
    return text


def _parse_state(text: str) -> State:
    if text not in STATES:
        raise ValueError(f"should be one of {', '.join(STATES)}")
    return STATES[text]


def _parse_text(text: str) -> str:
    if not 1 <= len(text) <= 128 or UNSTORABLE.search(text):
        raise ValueError("should be 1 to 128 characters without NUL and lone surrogates")
    return text


def _parse_time(text: str) -> datetime:
    # A plus that was not escaped.
    return parse_time(text.replace(" ", "+"))


def _parse_limit(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,2}", text, re.ASCII) or int(text) > MAX_LIMIT:
        raise ValueError(f"should be a whole number from 1 to {MAX_LIMIT}")
    return int(text)
