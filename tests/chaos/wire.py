"""A host of service A's own, and a real wire to it, which can go silent: what was sent then, the kernels send again."""

import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

NOWHERE = "02:00:00:00:00:01"
"""A hardware address that nobody has."""
SUBNETS = 64


class Wire:
    """A network namespace, and a pair of interfaces between it and ours; needs root and iproute2."""

    def __init__(self) -> None:
        self._name = f"cpe-{uuid4().hex[:8]}"
        first = 4 * random.randrange(SUBNETS)
        # RFC 5737: no real network's.
        self._ours, self.address = (f"198.51.100.{first + number}" for number in (1, 2))

    @staticmethod
    def can_be_made() -> bool:
        """Whether this machine lets us."""
        if os.geteuid() != 0 or not shutil.which("ip"):
            return False
        wire = Wire()
        try:
            wire.make()
        except RuntimeError:
            return False
        finally:
            wire.remove()
        return True

    @property
    def enter(self) -> list[str]:
        """What stands before a command that shall run on the other host."""
        return ["ip", "netns", "exec", self._name]

    def make(self) -> None:
        """Make the host, and connect it."""
        name = self._name
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "wire", "netns", name)
        _ip("addr", "add", f"{self._ours}/30", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "addr", "add", f"{self.address}/30", "dev", "wire")
        for device in ("lo", "wire"):
            _ip("-n", name, "link", "set", device, "up")

    def remove(self) -> None:
        """Remove it, and the wire with it."""
        with suppress(RuntimeError):
            _ip("netns", "del", self._name)

    def silence(self, on: bool) -> None:
        """Send everything nowhere, on both sides, or to the other host again. Neither kernel is told of it."""
        for where, device, peer in (((), self._name, self.address), (("-n", self._name), "wire", self._ours)):
            if on:
                _ip(*where, "neigh", "replace", peer, "dev", device, "lladdr", NOWHERE, "nud", "permanent")
            else:
                with suppress(RuntimeError):  # It was not silent.
                    _ip(*where, "neigh", "del", peer, "dev", device)


async def silent_wire(rig: "Rig", rng: random.Random) -> AsyncIterator[None]:
    """Nothing reaches A, and nothing comes back, for longer than a call may take."""
    assert rig.wire
    rig.wire.silence(True)
    yield
    rig.wire.silence(False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
