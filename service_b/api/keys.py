"""`Idempotency-Key`: a request that may be sent again and makes one task (after the IETF's draft of that name)."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from multidict import istr

from service_b.api.errors import BadRequestError
from service_b.idempotency import Once

KEY = istr("Idempotency-Key")
PRINTABLE = re.compile("[ -~]{1,255}")


def once_of(request: web.Request, *content: Any) -> Once:
    """Read the key of a request that has one. For `content`, and what is raised, see `make_once`."""
    sent = request.headers.getall(KEY)
    if len(sent) != 1:
        raise BadRequestError("There must be one Idempotency-Key")
    return make_once(sent[0], request, *content)


def make_once(key: str, request: web.Request, *content: Any) -> Once:
    """Put a key and its request together.

    `content` is what makes it this request, besides its path: JSON, and times. White space, the order of names and the
    offset of a time make no difference. Raises `BadRequestError`.
    """
    if not PRINTABLE.fullmatch(key):
        raise BadRequestError("An Idempotency-Key has 1 to 255 printable characters")
    return Once(key, json.dumps([request.method, request.path, content], sort_keys=True, default=_in_utc))


def _in_utc(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
