"""Service A's HTTP interface: every answer is known at once and sent only after the delay."""

import asyncio
import logging
import zlib

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service_a.malformed import quote_nothing
from service_a.settings import SERIAL, Settings

SETTINGS = web.AppKey("settings", Settings)

log = logging.getLogger("service_a")


class Parameters(BaseModel):
    """What is set on the device; other keys are somebody's business too."""

    model_config = ConfigDict(strict=True)

    username: str
    password: str
    vlan: int | None = None
    interfaces: list[int]


class Order(BaseModel):
    """The body of a request to configure a device."""

    model_config = ConfigDict(strict=True)

    timeout_in_seconds: int = Field(alias="timeoutInSeconds", ge=1)
    parameters: Parameters


async def configure(request: web.Request) -> web.Response:
    """`POST /api/v1/equipment/cpe/{id}`: refuse what is malformed at once, answer the rest after the delay."""
    serial = request.match_info["id"]
    if not SERIAL.fullmatch(serial):
        return answer(400, "The equipment id is malformed")
    try:
        Order.model_validate_json(await request.read())
    except ValidationError:
        return answer(400, "The request body is malformed")
    settings = request.app[SETTINGS]
    await asyncio.sleep(settings.response_delay_seconds)
    response = decide(serial, settings.known, settings.error_rate)
    log.debug("answered %s with %d", serial, response.status)
    return response


def decide(serial: str, known: frozenset[str] | None, error_rate: float) -> web.Response:
    """The answer for a device; a hash of the serial decides on errors, so that the same device always gets the same."""
    if known is not None and serial not in known:
        return answer(404, "The requested equipment is not found")
    if zlib.crc32(serial.encode()) / 2**32 < error_rate:
        return answer(500, "Internal provisioning exception")
    return answer(200, "success")


def answer(code: int, message: str) -> web.Response:
    """An answer of service A: its code is the HTTP status too."""
    return web.json_response({"code": code, "message": message}, status=code)


async def live(request: web.Request) -> web.Response:
    """`GET /health/live`: the process answers, so it lives."""
    return web.json_response({"status": "alive", "name": request.app[SETTINGS].app_name})


async def hide_software(request: web.Request, response: web.StreamResponse) -> None:
    """Name nobody's software."""
    response.headers.pop("Server", None)


def create_app(settings: Settings) -> web.Application:
    """Wire the application."""
    quote_nothing()
    app = web.Application()
    app.on_response_prepare.append(hide_software)
    app[SETTINGS] = settings
    app.router.add_post("/api/v1/equipment/cpe/{id}", configure)
    app.router.add_get("/health/live", live)
    return app
