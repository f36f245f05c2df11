"""Two versions side by side: a configurator of a former commit joins, as in an upgrade under way."""

import asyncio
import random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.chaos.rig import SENDER, Rig
from tests.system.processes import Process
from tests.system.spawning import LOCAL, ROOT

COMMIT = "db4ca82"
"""The last one whose configurator called A without a lease."""
TREE = LOCAL / f"former-{COMMIT}"


def former_tree() -> Path:
    """The code of that commit."""
    if not TREE.exists():
        TREE.parent.mkdir(exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=TREE.parent))
        archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=unfinished, input=archive.stdout, check=True)
        try:
            unfinished.rename(TREE)
        except OSError:
            shutil.rmtree(unfinished)  # Another thread was quicker.
    return TREE


async def former_configurator(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """It takes its share of the work for a while."""
    tree = await asyncio.to_thread(former_tree)
    environment = rig.environment("configurator")
    process = Process(SENDER, rig.folder / "logs", environment, name="former", folder=tree)  # type: ignore[arg-type]
    await asyncio.to_thread(process.start)
    yield
    code = await asyncio.to_thread(process.terminate, 60)
    rig.history.write("exit", name=process.name, code=code)
