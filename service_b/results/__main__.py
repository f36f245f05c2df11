"""`python -m service_b.results`: the results process."""

import uvloop
from aiohttp import web

from runtime.process import prepare
from service_b.results.app import create_app
from service_b.results.settings import Settings


def main() -> None:
    """Record until SIGTERM or SIGINT."""
    settings = prepare(Settings)
    web.run_app(
        create_app(settings),
        host=settings.health_host,
        port=settings.health_port,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
