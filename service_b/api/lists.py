"""Lists of tasks: all that a client may see, and those of one device."""

import json

from aiohttp import web

from runtime.answers import Answer
from service_b.api.bodies import parse_serial
from service_b.api.errors import EquipmentNotFoundError
from service_b.api.guard import Route
from service_b.api.parts import LISTINGS
from service_b.api.queries import Query, make_cursor, parse_query
from service_b.api.tasks import TASKS, shown
from service_b.api.trail import Caller
from service_b.listings import Page, Sight


async def list_tasks(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell a page of the tasks that the caller may see."""
    return await _answer(request, caller, parse_query(request.query))


async def list_device(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Tell a page of what happened with a device."""
    serial = parse_serial(request.match_info["id"])
    if caller and not caller.covers(serial):
        raise EquipmentNotFoundError
    return await _answer(request, caller, parse_query(request.query, serial))


async def _answer(request: web.Request, caller: Caller | None, query: Query) -> Answer:
    page = Page([], None)
    if query.campaign is None:
        page = await request.app[LISTINGS].page(query.filters, _sight(caller), query.before, query.limit)
    cursor = page.next and make_cursor(page.next, query.filters)
    body = {"items": [shown(task) for task in page.tasks], "next": cursor}
    headers = {"Link": f'<{request.rel_url.update_query(cursor=cursor)}>; rel="next"'} if cursor else None
    return Answer(200, json.dumps(body, separators=(",", ":")).encode(), headers)


def _sight(caller: Caller | None) -> Sight:
    """Tell what may be seen: the same as `Access.sees` says of a single task."""
    if caller is None:
        return Sight()
    access = caller.access
    return Sight(None if "operate" in access.roles else access.name, access.patterns)


ROUTES = (
    Route("GET", TASKS, list_tasks, frozenset({"read", "operate"}), problems=True),
    Route("GET", "/api/v1/equipment/cpe/{id:[^/]+}/tasks", list_device, frozenset({"read", "operate"}), problems=True),
)
