"""Servers that do nothing but answer: `python -m tests.bench.bare aiohttp | asyncio PORT`.

The one of aiohttp is the floor under our web process, the one of asyncio shows what the load generator can do.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop
from aiohttp import web

ANSWER = b'{"code":200,"taskId":"01890a5d-ac96-774b-bcce-b302099a8057"}'
RAW_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)


async def answer(request: web.Request) -> web.Response:
    """Answer and look at nothing."""
    return web.Response(body=ANSWER, content_type="application/json")


async def grant(request: web.Request) -> web.Response:
    """Read what a configurator asks, and grant all of it."""
    asked = json.loads(await request.read())
    return web.Response(body=json.dumps({"granted": [True for _ in asked["attempts"]]}).encode())


class Raw(asyncio.Protocol):
    """Answer whatever comes: the generator sends a request at a time, in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # type: ignore[explicit-override]
        self._write = cast(asyncio.Transport, transport).write  # uvloop's is one but for its bases.

    def data_received(self, data: bytes) -> None:  # type: ignore[explicit-override]
        self._write(RAW_ANSWER)


async def serve_raw(port: int) -> None:
    """Serve until the end of the process."""
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serve until a signal."""
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "asyncio":
        uvloop.run(serve_raw(port))
    app = web.Application()
    app.router.add_post("/api/v1/equipment/cpe/{id}", answer)
    app.router.add_post("/leases", grant)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, backlog=4096, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
