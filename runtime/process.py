"""What each process does before its event loop starts."""

import asyncio
import gc
import resource
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from runtime.logs import configure_logs
from runtime.settings import ProcessSettings, read_settings

S = TypeVar("S", bound=ProcessSettings)

log = structlog.stdlib.get_logger(__name__)


def prepare(settings_class: type[S]) -> S:
    """Read the settings, configure the logs, and allow as many descriptors as the system lets this process have.

    Every call in flight and every client is a descriptor, and the usual soft limit of 1,024 is soon reached.
    """
    settings = read_settings(settings_class)
    configure_logs(settings)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What is loaded by now stays, and thousands of calls in flight are no garbage: let the collector look less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    return settings


def start_vital(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start what the process lives for. Should it fail, the process stops, to be started again by its supervisor."""

    def stop_process(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("process.failed", task=name, exc_info=error)
            signal.raise_signal(signal.SIGTERM)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(stop_process)
    return task
