"""Our own processes, started as in production, with a log file each."""

import json
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.system.nursery import Nursery
from tests.system.spawning import ROOT, Started, base_environment, end, free_port, spawn, wait_until

Module = Literal["service_a", "service_b", "service_b.results", "configurator"]

SETTLED_SECONDS = 8.0
"""A process that has missed the same for so long will go on missing it."""
UNTRIED = "not connected yet"
"""What it says before the broker has answered at all, which may take longer on a busy machine."""


class Process:
    """One of the four: `python -m <module>` with the given variables, on a free loopback port unless one is given.

    The log file is `<logs>/<name>.log`; a process that is started again appends to it. `folder`: where its code is.
    `client`: how it is asked where it speaks TLS. `nursery`: what forks it, instead of a new Python.
    """

    def __init__(
        self,
        module: Module,
        logs: Path,
        environment: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
        folder: Path = ROOT,
        client: ssl.SSLContext | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        serves = "APP" if module in ("service_a", "service_b") else "HEALTH"
        self.module = module
        self.folder = folder
        self.name = name or module
        self.log_file = logs / f"{self.name}.log"
        self.environment = {f"{serves}_HOST": "127.0.0.1", "LOG_FORMAT": "json"} | dict(environment or {})
        self.port = int(self.environment.setdefault(f"{serves}_PORT", str(free_port())))
        self._nursery = nursery
        self._process: Started | None = None
        # No proxy of the developer's may stand between us and our own machine.
        own = [urllib.request.HTTPSHandler(context=client)] if client else []
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *own)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"{'https' if 'TLS_CERT_FILE' in self.environment else 'http'}://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the running process."""
        return self._running().pid

    def start(self, *, wait: bool = True, timeout: float = 90, descriptors: int | None = None) -> None:
        """Start it; with `wait`, until it says that it is ready (up to `timeout` seconds)."""
        environment = base_environment() | self.environment
        if self._nursery:
            self._process = self._nursery.fork([self.module], environment, self.log_file, descriptors=descriptors)
        else:
            command = [sys.executable, "-m", self.module]
            self._process = spawn(command, environment, self.log_file, folder=self.folder, descriptors=descriptors)
        if wait:
            self.wait_until_ready(timeout)

    def wait_until_ready(self, timeout: float = 90) -> None:
        """Poll its health route; otherwise raise with what it misses, or with the end of its log.

        It is not waited for when it says the same again and again: a wrong password does not become right.
        """
        said, since = list[str](), time.monotonic()

        def is_ready() -> bool:
            nonlocal said, since
            missing = self.missing()
            if missing == []:
                return True
            if missing is None or missing != said or any(UNTRIED in phrase for phrase in missing):
                said, since = missing or [], time.monotonic()
            elif time.monotonic() - since > SETTLED_SECONDS:
                raise RuntimeError(f"{self.name} is not ready: {'; '.join(missing)}")
            return False

        wait_until(is_ready, self.name, timeout=timeout, process=self._running(), log_file=self.log_file)

    def is_ready(self) -> bool:
        """Whether it says that it can do its work (service A: that it lives)."""
        return self.missing() == []

    def missing(self) -> list[str] | None:
        """What it says that it misses, nothing when it is ready; None while it does not answer."""
        path = "/health/live" if self.module == "service_a" else "/health/ready"
        try:
            with self._opener.open(self.url + path, timeout=5):
                return []
        except urllib.error.HTTPError as error:
            return list(json.load(error)["missing"])
        except OSError:
            return None

    def terminate(self, timeout: float = 120) -> int:
        """Ask it to stop (SIGTERM) and return its exit code; after `timeout` seconds it is killed (-9)."""
        return end(self._running(), signal.SIGTERM, timeout=timeout)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        end(self._running(), signal.SIGKILL, timeout=30)

    def pause(self) -> None:
        """Make it stand still (SIGSTOP), as a machine that hangs does."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._running().send_signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal and wait for nothing."""
        self._running().send_signal(number)

    def wait(self, timeout: float = 120) -> int:
        """Wait (up to `timeout` seconds) for its end and return the exit code."""
        return self._running().wait(timeout)

    def close(self) -> None:
        """Terminate it if it runs."""
        if self.is_running:
            self.terminate()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> Started:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process
