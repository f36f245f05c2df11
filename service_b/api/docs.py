"""The API described: `/openapi.json` for programs, `/docs` for people, without a token and without any other host."""

import json
from functools import cache, partial
from pathlib import Path

import yaml
from aiohttp import web

from runtime.answers import Answer

DESCRIPTION = Path(__file__).parent / "openapi.yaml"
PAGES = Path(__file__).parent / "pages"

POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""A page runs no script but its own files', asks nobody but us, and stands in no frame (W3C CSP 3).

The styles of swagger-ui hold small pictures.
"""

HTML, SCRIPT, STYLE, PICTURE = "text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css", "image/png"

FILES = {
    "/docs": ("docs.html", HTML),
    "/docs/start.js": ("start.js", SCRIPT),
    "/docs/swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", SCRIPT),
    "/docs/swagger-ui.css": ("swagger-ui/swagger-ui.css", STYLE),
    "/docs/favicon-32x32.png": ("swagger-ui/favicon-32x32.png", PICTURE),
}
"""What is served at which path, and as what. swagger-ui's files are those of its release: see `SHA256SUMS`."""


def add_routes(router: web.UrlDispatcher) -> None:
    """Serve the description and its pages, to everybody: they tell nothing of any task."""
    handlers = {"/openapi.json": tell_description} | {path: partial(show, path=path) for path in FILES}
    for path, handler in handlers.items():
        for method in ("GET", "HEAD"):
            router.add_route(method, path, handler)


async def tell_description(request: web.Request) -> web.StreamResponse:
    """Tell the description, as JSON."""
    return Answer(200, description(), POLICY)


async def show(request: web.Request, path: str) -> web.StreamResponse:
    """Hand out a file."""
    name, kind = FILES[path]
    return Answer(200, _content(name), POLICY, kind=kind)


@cache
def description() -> bytes:
    """Return the OpenAPI document as JSON: people write it as YAML. Whom nobody asks need not read it."""
    return json.dumps(yaml.load(DESCRIPTION.read_bytes(), yaml.CSafeLoader)).encode()


@cache
def _content(name: str) -> bytes:
    return (PAGES / name).read_bytes()
