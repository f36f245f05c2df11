"""Whether the keys are here that tasks are sealed for. Without one of them no work is taken."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import structlog

from configurator import metrics
from messaging.messages import ConfigureTask
from messaging.sealing.opener import Opener
from runtime.clock import now

log = structlog.stdlib.get_logger(__name__)

PAUSE_SECONDS = 5.0


class Keys:
    """The keys that tasks are opened with, and which one is known to be missing.

    A key that is missing is an error of the deployment, and must end no task: what is sealed for it is left to others
    who may have it, and looked for again after a pause, with the files read anew. One task whose key is nowhere does
    not stop the rest: what comes with it and can be opened is called for.
    """

    def __init__(self, files: Sequence[Path], *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._opener = Opener(files)
        self._pause_seconds = pause_seconds
        self.missing = asyncio.Event()
        """Set when a task has come whose key is not here, until it is time to look again."""
        self._needed = ""
        """The id of the key that was missing last, and when."""
        self._missed_at = -math.inf

    @property
    def unready(self) -> str | None:
        """What a readiness check says: None unless a key is missing, or was just before the last look."""
        if not self.missing.is_set() and now() - self._missed_at > 2 * self._pause_seconds:
            return None
        return f"SEAL_KEY_FILE: no key {self._needed}, which tasks are sealed for"

    def are_here(self, task: ConfigureTask) -> bool:
        """Tell whether this task can be opened, as far as keys are concerned."""
        needed = self._opener.missing_key(task.parameters)
        if needed is None:
            return True
        if needed != self._needed or self.unready is None:
            log.error("seal.key_missing", key=needed, task_id=str(task.task_id), variable="SEAL_KEY_FILE")
        self._needed, self._missed_at = needed, now()
        self.missing.set()
        return False

    async def look_again(self) -> None:
        """If one is missing, pause, and read the files anew."""
        if not self.missing.is_set():
            return
        with metrics.KEYLESS.track_inprogress():
            await asyncio.sleep(self._pause_seconds)
        if self._needed in self._opener.read_again():
            log.info("seal.key_found", key=self._needed)
            self._missed_at = -math.inf
        self.missing.clear()

    def open(self, task: ConfigureTask) -> str:
        """Give a task's parameters as its client wrote them. Raises `OpenError`."""
        return self._opener.open(task.parameters, task.sealed_for or task.task_id, task.equipment_id)
