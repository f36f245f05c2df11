"""A clock of the database's own, which can be set back and forth while it runs (libfaketime)."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
HOUR_SECONDS = 3600.0
CALM_SECONDS = 1.5
"""Before and after a step."""


class Clock:
    """What the programs that have `environment` take for the time: the machine's, and so many seconds more.

    Their monotonic clock stays the machine's, and so do their time-outs. They hear of a step at once, all of them.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="clock-"))
        self._folder.chmod(0o755)  # PostgreSQL runs as somebody else.
        self._file = self._folder / "offset"
        self.offset = 0.0
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a program must be started with."""
        if LIBRARY is None:
            raise RuntimeError("libfaketime is not installed: tests/system/bootstrap.sh libfaketime")
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, offset: float) -> None:
        """Let it go wrong by so many seconds."""
        self.offset = offset
        new = self._file.with_name("new")
        new.write_text(f"{offset:+.0f}\n")
        new.chmod(0o644)
        new.replace(self._file)

    def remove(self) -> None:
        """Nobody uses it any more."""
        shutil.rmtree(self._folder)


async def stepped(hours: float, rig: "Rig", rng: random.Random) -> AsyncIterator[None]:
    """The database's clock is stepped, and stepped back, while tasks wait for their next attempt."""
    assert rig.clock
    await rig.service_a.behave("drop", 0.5, seconds=0)
    for step in (hours, -hours):
        await asyncio.sleep(CALM_SECONDS)
        rig.clock.set(rig.clock.offset + step * HOUR_SECONDS)
        rig.history.write("stepped", hours=step)
        if step == hours:
            yield
    await asyncio.sleep(CALM_SECONDS)
    await rig.service_a.behave("answer", 0, seconds=0)
