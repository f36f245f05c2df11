"""`python -m configurator`: the configurator."""

import uvloop
from aiohttp import web

from configurator.app import create_app
from configurator.settings import Settings
from runtime.process import prepare


def main() -> None:
    """Consume until SIGTERM or SIGINT."""
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
