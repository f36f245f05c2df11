"""`python -m service_b`: the web process."""

import uvloop
from aiohttp import web

from runtime.process import prepare
from service_b.app import create_app
from service_b.settings import Settings


def main() -> None:
    """Serve until SIGTERM or SIGINT. Several processes may share one port."""
    settings = prepare(Settings)
    web.run_app(
        create_app(settings),
        host=settings.app_host,
        port=settings.app_port,
        reuse_port=True,
        backlog=4096,
        shutdown_timeout=10,
        access_log=None,
        print=None,
        auto_decompress=False,  # A compressed body is refused; aiohttp would log a traceback of one that is broken.
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
