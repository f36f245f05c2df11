"""A process that has imported what ours import, and forks: imports are most of what the start of a process costs.

Its children are processes as `python -m` makes them, each with its own number, environment, log and limits; only what
is imported lies in memory already. A test run cannot wait for them, as they are not its own, so the nursery does, and
tells how each has ended.
"""

import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tests.system.spawning import PRIVATE, Started, base_environment, make_private, spawn, tie_to_parent

IMPORTED = ("configurator.app", "runtime.process", "runtime.serving", "service_b.app", "service_b.results.app")
REQUEST_BYTES = 1 << 16
NUMBER = struct.Struct("!q")
"""All that the nursery says of a child: its process id, and when it has ended its exit code."""


class Child:
    """A process that the nursery has started; to be used like a `subprocess.Popen`, from any thread."""

    def __init__(self, arguments: Sequence[str], told: int) -> None:
        self._arguments = arguments
        self._told = told
        self._reading = threading.Lock()
        self.returncode: int | None = None
        self.pid: int = NUMBER.unpack(os.read(told, NUMBER.size))[0]
        os.set_blocking(told, False)

    def __del__(self) -> None:
        os.close(self._told)

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        with self._reading, suppress(BlockingIOError):
            if self.returncode is None:
                # A nursery that dies says nothing, and its children die with it.
                code = os.read(self._told, NUMBER.size) or NUMBER.pack(-signal.SIGKILL)
                self.returncode = NUMBER.unpack(code)[0]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code once it has ended; raise after `timeout` seconds."""
        waiting = select.poll()
        waiting.register(self._told, select.POLLIN)
        waiting.poll(None if timeout is None else timeout * 1000)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Where children are asked for; the process begins with the first, and ends with the program that it belongs to."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: Started | None = None
        self._requests: socket.socket | None = None

    def fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log_file: Path,
        *,
        descriptors: int | None = None,
    ) -> Child:
        """Start what `python -m <arguments>` would, as `spawn` does."""
        make_private(log_file.parent)
        log_file.touch(0o600)
        with self._starting:
            requests = self._requests = self._requests or self._start(log_file.with_name("nursery.log"))
        told, tells = os.pipe()
        request = json.dumps([arguments, dict(environment), descriptors]).encode()
        with log_file.open("ab") as log:
            socket.send_fds(requests, [request], [log.fileno(), tells])
        os.close(tells)
        return Child(arguments, told)

    def close(self) -> None:
        """End the nursery, and with it what it has started."""
        if self._process and self._requests:
            self._requests.close()
            self._process.wait()

    def _start(self, log_file: Path) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            command = [sys.executable, "-m", "tests.system.nursery"]
            self._process = spawn(command, base_environment(), log_file, stdin=its.fileno())
        return ours


def nurse() -> list[str]:
    """Fork for whoever asks until nobody can any more; returns in each child, with what it shall run."""
    requests = socket.socket(fileno=os.dup(0))
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not requests:
                pid, tells = key.data
                os.write(tells, NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                selector.unregister(key.fileobj)
                os.close(key.fd)
                os.close(tells)
                continue
            request, descriptors, *_ = socket.recv_fds(requests, REQUEST_BYTES, 2)
            if not request:
                sys.exit()
            log, tells = descriptors
            arguments, environment, limit = json.loads(request)
            if not (pid := os.fork()):
                selector.close()
                requests.close()
                become(log, tells, environment, limit)
                return list(arguments)
            os.close(log)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, tells))


def become(log: int, tells: int, environment: Mapping[str, str], descriptors: int | None) -> None:
    """Be as a process that `spawn` has started."""
    most = os.sysconf("SC_OPEN_MAX")
    os.setsid()
    os.umask(PRIVATE)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.environ.clear()
    os.environ.update(environment)
    tie_to_parent(descriptors=descriptors)
    # Only now: whoever knows of it may signal it.
    os.write(tells, NUMBER.pack(os.getpid()))
    os.closerange(3, most)


if __name__ == "__main__":
    for each in IMPORTED:
        import_module(each)
    # What lies in memory is shared as long as nobody writes to it, and the collector would.
    gc.collect()
    gc.freeze()
    sys.argv = nurse()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
