"""`Idempotency-Key`: a request that may be sent again and makes one task (after the IETF draft of that name)."""

import json
import re

from aiohttp import web
from multidict import istr

from service_b.api.errors import BadRequestError
from service_b.idempotency import Once

KEY = istr("Idempotency-Key")
PRINTABLE = re.compile("[ -~]{1,255}")
REPLAYED = {"Idempotent-Replayed": "true"}
"""Told with the answer to a request that made no new task."""


def once_of(request: web.Request, **content: object) -> Once | None:
    """Read the request's key; None where it has none. `content` is what `make_once` takes.

    Raises `BadRequestError`.
    """
    if KEY not in request.headers:
        return None
    sent = request.headers.getall(KEY)
    if len(sent) != 1:
        raise BadRequestError("There must be one Idempotency-Key")
    return make_once(sent[0], request, **content)


def make_once(key: str, request: web.Request, **content: object) -> Once:
    """Put a key and what it is sent with together.

    `content` is all that makes it the request that it is besides the route, as JSON takes it (a time as its text);
    `parameters` is JSON text already. How it was written (white space, the order of keys) makes no difference.
    """
    if not PRINTABLE.fullmatch(key):
        raise BadRequestError("An Idempotency-Key is 1 to 255 printable ASCII characters")
    if isinstance(parameters := content.get("parameters"), str):
        content["parameters"] = json.loads(parameters)
    resource = request.match_info.route.resource
    route = f"{request.method} {resource.canonical if resource else ''}"
    return Once(key, json.dumps([route, request.match_info.get("id"), content], sort_keys=True))
