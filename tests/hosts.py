"""Two hosts and the wire between them, on this machine: network namespaces, whose kernels' TCP is the real one."""

import asyncio
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

Result = TypeVar("Result")

CLONE_NEWNET = 0x40000000
TIME_WAIT = "06"
NOWHERE = "02:00:00:00:00:01"
"""A hardware address that nobody has."""


class CannotMakeHostsError(Exception):
    """This machine does not let us, and the message says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """One of the two: a namespace, its address, and a thread that lives in it."""

    namespace: str
    address: str
    peer: str
    thread: ThreadPoolExecutor

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run something there: the sockets that it makes are this host's."""
        return await asyncio.wrap_future(self.thread.submit(work))

    def silence(self, on: bool) -> None:
        """Send everything nowhere, or to the other host again. Neither kernel is told of it."""
        peer = ("dev", "wire", "lladdr", NOWHERE, "nud", "permanent") if on else ("dev", "wire")
        _ip("-n", self.namespace, "neigh", "replace" if on else "del", self.peer, *peer)


def connections(port: int) -> list[str]:
    """List the connections of the calling thread's host to a port, on which its kernel may still send something."""
    found = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return [state for _, _, remote, state, *_ in found if remote.endswith(f":{port:04X}") and state != TIME_WAIT]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts with a wire between them. Raises `CannotMakeHostsError`."""
    if os.geteuid() != 0:
        raise CannotMakeHostsError("making network namespaces needs root")
    if not shutil.which("ip"):
        raise CannotMakeHostsError("there is no `ip`: apt-get install iproute2")
    addresses = "192.0.2.1", "192.0.2.2"  # RFC 5737: no real network's.
    names = [f"cpe-{uuid4().hex[:8]}" for _ in addresses]
    made = []
    threads = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("-n", names[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/30", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
            threads.append(ThreadPoolExecutor(1, initializer=_enter, initargs=(name,)))
        one, other = (
            Host(name, address, peer, thread)
            for name, address, peer, thread in zip(names, addresses, reversed(addresses), threads, strict=True)
        )
        for thread in threads:
            thread.submit(os.getpid).result()
        yield one, other
    except BrokenThreadPool:
        raise CannotMakeHostsError("a thread may not enter a network namespace") from None
    finally:
        for thread in threads:
            thread.shutdown()
        for name in made:
            _ip("netns", "del", name)


def _enter(namespace: str) -> None:
    """Move the calling thread into a namespace, for its whole life (setns(2); `os.setns` came with Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as there:
        if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMakeHostsError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
