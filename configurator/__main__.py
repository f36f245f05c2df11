"""`python -m configurator`: the configurator."""

from configurator.app import create_app
from configurator.settings import Settings
from runtime.listener import Address
from runtime.process import prepare
from runtime.serving import serve


def main() -> None:
    """Consume until SIGTERM or SIGINT."""
    settings = prepare(Settings)
    serve(create_app(settings), Address(settings.health_host, settings.health_port, "HEALTH_PORT"))


if __name__ == "__main__":
    main()
