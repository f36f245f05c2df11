"""Logs: dotted event names plus fields, JSON in containers, readable on a terminal."""

import logging
import os

import structlog
from typing_extensions import override

from runtime.settings import ProcessSettings
from runtime.writer import Writer

STDERR = 2
AUDIT = logging.getLogger("audit")
"""Takes whole lines, and writes them as they come."""


def configure_logs(settings: ProcessSettings, descriptor: int = STDERR) -> Writer:
    """Send our events, the libraries' records and Python's warnings to standard error in one format."""
    terminal = os.isatty(descriptor)
    text = settings.log_format == "text" or (settings.log_format is None and terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    final: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=terminal,
                exception_formatter=structlog.dev.plain_traceback,  # The rich one shows local variables, passwords too.
            )
        ]
        if text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    writer = Writer(descriptor)
    writer.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(handlers=[writer], level=settings.log_level, force=True)
    # aiormq tells of each lost connection several times, at ERROR; the session logs every loss once.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    # Who did what is not a matter of how much is logged.
    AUDIT.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return writer


class _Formatter(structlog.stdlib.ProcessorFormatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if record.name == AUDIT.name else super().format(record)
