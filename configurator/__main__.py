"""`python -m configurator`: the configurator."""

from configurator.app import create_app
from configurator.settings import Settings
from runtime.listener import Address
from runtime.process import prepare
from runtime.serving import serve

WATCHERS = 100
"""Connections of those who watch it; the descriptors are for calls of service A."""


def main() -> None:
    """Consume until SIGTERM or SIGINT."""
    settings = prepare(Settings)
    address = Address(settings.health_host, settings.health_port, "HEALTH_PORT")
    serve(create_app(settings), address, max_connections=WATCHERS)


if __name__ == "__main__":
    main()
