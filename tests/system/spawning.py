"""Starting and ending child processes so that none outlives the program that started it."""

import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / ".local"

PR_SET_PDEATHSIG = 1
PRIVATE = 0o077
"""The umask that leaves nothing to the group and to others."""

_libc = ctypes.CDLL(None)
# The kernel takes the end of the *thread* that forked for the parent's death, so one thread that lives as long as
# the program starts every child, whichever thread asks for it.
_spawner = ThreadPoolExecutor(1, "spawner")

PORTS = range(16000, 32000)
"""Below those that outgoing connections are given, so that a server that is started again finds its port free."""
BLOCK = 50


class Started(Protocol):
    """What is used of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


def spawn(
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    log_file: Path,
    *,
    folder: Path = ROOT,
    death_signal: signal.Signals = signal.SIGKILL,
    user: int | None = None,
    descriptors: int | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C reaches only us; it gets `death_signal` if we die.

    It may have so many `descriptors`, by default as many as we.

    What it writes, its log too, is for its user alone: it may hold other people's passwords.
    """

    make_private(log_file.parent)
    log_file.touch(0o600)
    with log_file.open("ab") as log:
        return _spawner.submit(
            subprocess.Popen,
            [str(argument) for argument in arguments],
            env=dict(environment),
            cwd=folder,
            stdin=stdin,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=PRIVATE,
            preexec_fn=partial(tie_to_parent, death_signal, descriptors),
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        ).result()


def tie_to_parent(death_signal: signal.Signals = signal.SIGKILL, descriptors: int | None = None) -> None:
    """Let this process get a signal if the thread that has forked it ends, and have no more descriptors than these."""
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can look into."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def base_environment() -> dict[str, str]:
    """What a child needs of our environment; the developer's own settings must not reach a private system.

    Nor does what measures coverage: it would cost the processes under test a quarter of their time.
    """
    wanted = ("PATH", "LANG", "LC_ALL", "TMPDIR", "HOME", "TZ")
    return {
        name: value
        for name, value in os.environ.items()
        if name in wanted or name.startswith(("PYTHON", "LD_LIBRARY_PATH"))
    }


def free_port() -> int:
    """A free loopback port that is given once, and to one process only, whoever else calls this on the machine."""
    with _giving:
        for port in _ports:
            if is_port_free(port):
                return port
    raise RuntimeError(f"no free port from {PORTS.start} to {PORTS.stop}")


def _own_ports() -> Iterator[int]:
    """Take block after block; who has bound a block's first port for UDP has the block for as long as it lives."""
    blocks = list(range(PORTS.start, PORTS.stop, BLOCK))
    random.shuffle(blocks)
    for first in blocks:
        sign = socket.socket(type=socket.SOCK_DGRAM)
        try:
            sign.bind(("127.0.0.1", first))
        except OSError:
            sign.close()
            continue
        sign.detach()
        yield from range(first, first + BLOCK)


_ports, _giving = _own_ports(), threading.Lock()


def is_port_free(port: int) -> bool:
    """Whether a server could listen on the port now; connections that linger from before do not matter."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float, process: Started, log_file: Path) -> None:
    """Poll until the condition holds; if the process ends before or `timeout` seconds pass, raise with its last log."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"{what}: ended with code {process.returncode}\n{last_lines(log_file)}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready after {timeout:g} s\n{last_lines(log_file)}")
        time.sleep(0.02)


def end(process: Started, signal_number: signal.Signals, *, timeout: float) -> int:
    """Ask a process to end and wait for its exit code; kill it after the time-out (seconds)."""
    with suppress(ProcessLookupError):
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def last_lines(log_file: Path, count: int = 25) -> str:
    """The end of a log, for an error message."""
    if not log_file.exists():
        return "(no log)"
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-count:])
