"""What each process does before its event loop starts."""

import gc
import resource
from typing import TypeVar

from runtime.logs import configure_logs
from runtime.settings import ProcessSettings, read_settings

S = TypeVar("S", bound=ProcessSettings)


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
