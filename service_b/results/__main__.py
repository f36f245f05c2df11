"""`python -m service_b.results`: the results process."""

from runtime.listener import Address
from runtime.process import prepare
from runtime.serving import serve
from service_b.results.app import create_app
from service_b.results.settings import Settings


def main() -> None:
    """Record until SIGTERM or SIGINT."""
    settings = prepare(Settings)
    serve(create_app(settings), Address(settings.health_host, settings.health_port, "HEALTH_PORT"))


if __name__ == "__main__":
    main()
