"""`python -m service_a`: the stub as a process."""

import gc
import json
import logging
import resource
import sys

import uvloop
from aiohttp import web

from service_a.app import create_app
from service_a.settings import Settings, read_settings
from service_a.tls import make_context, reloading

# A burst of callers waits here until it is accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 16384
# A stub has nothing to finish; its callers' own limits decide how long they wait.
SHUTDOWN_SECONDS = 1.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for machines."""

    def format(self, record: logging.LogRecord) -> str:  # type: ignore[explicit-override]  # typing's is of 3.12
        fields = {"time": self.formatTime(record), "level": record.levelname.lower(), "event": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logs(settings: Settings) -> None:
    """Log to standard output: text for a person at a terminal, JSON for the rest."""
    handler = logging.StreamHandler(sys.stdout)
    if (settings.log_format or ("text" if sys.stdout.isatty() else "json")) == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def main() -> None:
    """Run the stub until a signal stops it."""
    settings = read_settings()
    configure_logs(settings)
    # Every waiting caller is a descriptor, and the usual soft limit of 1,024 is soon reached.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Nor are waiting callers garbage: let the collector look at them less often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    app, tls = create_app(settings), None
    if settings.tls_cert_file and settings.tls_key_file:
        tls = make_context(settings.tls_cert_file, settings.tls_key_file)
        app.cleanup_ctx.append(reloading(tls, settings.tls_cert_file, settings.tls_key_file))
    scheme = "https" if tls else "http"
    logging.getLogger("service_a").info("listening on %s://%s:%d", scheme, settings.app_host, settings.app_port)
    web.run_app(
        app,
        host=settings.app_host,
        port=settings.app_port,
        ssl_context=tls,
        backlog=BACKLOG,
        shutdown_timeout=SHUTDOWN_SECONDS,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


main()
