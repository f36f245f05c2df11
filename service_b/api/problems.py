"""Errors as problem details (RFC 9457), and a page for each kind: what the new routes tell instead of code and message.

An error of `errors` is a kind by its `slug`; nothing else is to be done for a new one.
"""

import json
from typing import Any

from aiohttp import web

from runtime.answers import Answer
from service_b.api import errors
from service_b.api.errors import ApiError, ProblemNotFoundError
from service_b.api.guard import Route
from service_b.api.trail import Caller

KIND = "application/problem+json"

KINDS = {kind.slug: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ApiError)}


def problem(error: ApiError) -> dict[str, Any]:
    """Return the problem's JSON object."""
    told = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": error.code,
        "detail": error.message,
    }
    return told | {"errors": error.errors} if error.errors else told


def answer(error: ApiError) -> Answer:
    """Make the answer to a request that failed."""
    return Answer(error.code, json.dumps(problem(error), separators=(",", ":")).encode(), error.headers, kind=KIND)


async def explain(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell what a kind of problem is, in plain words."""
    kind = KINDS.get(request.match_info["slug"])
    if kind is None:
        raise ProblemNotFoundError
    text = f"{kind.title}\n\nHTTP status {kind.code}. {kind.explanation}\n"
    return Answer(200, text.encode(), kind="text/plain; charset=utf-8")


ROUTES = (Route("GET", "/problems/{slug:[^/]+}", explain, None, problems=True),)
