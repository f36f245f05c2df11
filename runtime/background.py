"""What goes on in the background of a process: one shape for every loop, and one place where their ends are noticed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import structlog

T = TypeVar("T")

AGAIN_SECONDS = 0.5
"""What was cancelled and goes on is cancelled again after so long; what it cleans up takes less."""

log = structlog.stdlib.get_logger(__name__)


class Loop(Protocol):
    """Something that a process lives for."""

    async def run(self) -> None:
        """Work until stopped. It ends in no other way: its errors are its own matter."""

    def stop(self) -> None:
        """Begin nothing more; `run` returns when what has begun is finished."""


class Endless:
    """A loop of what may be cut off anywhere, since it leaves nothing half done."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until stopped."""
        await until(self._stopping, self._work())

    def stop(self) -> None:
        """Cut the work off."""
        self._stopping.set()


@asynccontextmanager
async def running(loops: Mapping[str, Loop], *, stop_seconds: float) -> AsyncIterator[None]:
    """Run loops, by their names, while the context lasts; then stop them all, and cancel what has not ended in time.

    A loop that fails, is cancelled or returns before it was stopped takes the process with it, to be started again by
    its supervisor: a web process without its relay would look healthy and accept tasks that nobody dispatches.
    """
    is_stopping = False

    def notice(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if is_stopping and error is None:
            return
        log.critical("process.failed", loop=task.get_name(), cancelled=task.cancelled(), exc_info=error)
        if not is_stopping:
            signal.raise_signal(signal.SIGTERM)

    tasks = {asyncio.create_task(loop.run(), name=name) for name, loop in loops.items()}
    for task in tasks:
        task.add_done_callback(notice)
    try:
        yield
    finally:
        is_stopping = True
        for loop in loops.values():
            loop.stop()
        _, late = await asyncio.wait(tasks, timeout=stop_seconds)
        for task in late:
            log.error("process.gave_up", loop=task.get_name(), after_seconds=stop_seconds)
        await end(*late)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended, whatever they end with.

    Once is not enough. A library may swallow a cancellation: asyncpg does while it closes a connection that `init` has
    refused (it raises the refusal), `asyncio.wait_for` of Python 3.11 where an answer comes at the same moment. A loop
    that tries again after an error would go on for ever then.
    """
    going_on = {task for task in tasks if not task.done()}
    while going_on:
        for task in going_on:
            task.cancel()
        _, going_on = await asyncio.wait(going_on, timeout=AGAIN_SECONDS)


async def vital(work: Coroutine[Any, Any, T]) -> T:
    """Do some work of a `TaskGroup`'s, which overlooks a child that something inside of it has cancelled.

    Such an end becomes an error here, so that the whole group ends.
    """
    try:
        return await work
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise RuntimeError("cancelled from inside") from error


async def until(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do some work, but cancel it (see `end`) when told to stop: None then, otherwise its result."""
    if stopping.is_set():
        work.close()
        return None
    working = asyncio.create_task(work)
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end(working, stopped)
