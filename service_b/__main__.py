"""`python -m service_b`: the web process."""

from runtime.listener import Address
from runtime.process import prepare
from runtime.serving import serve
from runtime.tls import Reloading, server_context
from service_b.app import create_app
from service_b.settings import Settings


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = prepare(Settings)
    tls = Reloading(server_context, settings.tls_files) if settings.tls_files else None
    serve(
        create_app(settings, tls=tls),
        Address(settings.app_host, settings.app_port, "APP_PORT", is_shared=settings.reuse_port, tls=tls),
        watchers=Address(settings.health_host, settings.health_port, "HEALTH_PORT") if settings.health_port else None,
        keepalive_seconds=settings.keepalive_seconds,
        max_connections=settings.max_connections,
    )


if __name__ == "__main__":
    main()
