"""Who may ask for what: with tokens, this stands in front of every handler of the API."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from multidict import CIMultiDictProxy

from service_b.api.errors import InsufficientScopeError, InvalidTokenError, NoTokenError
from service_b.api.trail import CALLER, Caller
from service_b.tokens.access import Access, Role
from service_b.tokens.file import Tokens


class Handler(Protocol):
    """Answers a request: of anybody where there are no tokens, else of this caller."""

    async def __call__(self, request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
        """Answer."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the API, and the roles of which a token must have one; with none of them any token will do.

    `roles` None: it needs no token, and its handler gets no caller.
    """

    method: str
    path: str
    handler: Handler
    roles: frozenset[Role] | None
    # Its errors are problems (RFC 9457), not the legacy contract's.
    problems: bool = False


def guarded(route: Route, tokens: Tokens) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Put a guard in front of a route's handler: it answers 401 or 403, before anything is read or looked up."""

    async def handle(request: web.Request) -> web.StreamResponse:
        access = identify(request.headers, tokens)
        caller = request[CALLER] = Caller(access)
        if route.roles and route.roles.isdisjoint(access.roles):
            raise InsufficientScopeError
        return await route.handler(request, caller)

    return handle


def identify(headers: CIMultiDictProxy[str], tokens: Tokens) -> Access:
    """Tell whose request it is. Raises `NoTokenError` or `InvalidTokenError`."""
    sent = headers.getall("Authorization", None)
    if not sent:
        raise NoTokenError
    scheme, _, token = sent[0].partition(" ")
    # Of two tokens, whoever stands in front of us may have judged the other one.
    if len(sent) == 1 and scheme.lower() == "bearer" and (access := tokens.find(token.strip())):
        return access
    raise InvalidTokenError
