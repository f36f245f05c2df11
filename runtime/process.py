"""What each process does before its event loop starts."""

import gc
import os
import resource
from typing import TypeVar

from runtime.logs import configure_logs
from runtime.settings import ProcessSettings, read_settings

S = TypeVar("S", bound=ProcessSettings)


def prepare(settings_class: type[S]) -> S:
    """Read the settings, configure the logs, and make room for many connections."""
    fill_standard_descriptors()
    settings = read_settings(settings_class)
    configure_logs(settings)
    raise_descriptor_limit()
    spare_collector()
    return settings


def fill_standard_descriptors() -> None:
    """Open nothing in the place of standard input, output and error where they are closed.

    The next socket would get the number of one that is missing, and the log would be written to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number: this one.


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets this process have.

    Every call in flight and every client is one, and the usual soft limit of 1,024 is soon reached.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spare_collector() -> None:
    """Let the garbage collector look less often: what is loaded by now stays, and calls in flight are no garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
