"""Asking the broker by aiormq, whose answers may end in any exception."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from messaging.reader import Reader
from runtime.clock import now

T = TypeVar("T")


class Lose(Protocol):
    """Gives a channel up, for a reason and perhaps an error that says more."""

    def __call__(self, reason: str, error: BaseException | None = None) -> None:
        """Give it up."""


def describe(error: BaseException) -> str:
    """Say what an error says; many of aiormq's say nothing but their names."""
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def raise_if_cancelled() -> None:
    """Tell our own cancellation from aiormq's: it swallows ours where it closes, and raises one where it loses."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


async def outlast(waits: Iterable[asyncio.Future[Any]], seconds: float, moved_at: Callable[[], float]) -> bool:
    """Wait for the first of some, until nothing has moved for so many seconds; tell whether one is done."""
    begun_at, waits = now(), list(waits)
    while (left := max(begun_at, moved_at()) + seconds - now()) > 0:
        done, _ = await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return True
    return False


class Asker:
    """Asks the broker. Without an answer the channel is lost, and the answer None.

    aiormq ends what waits on a connection that breaks with many an exception: a bare one, and CancelledError.
    `patience`: seconds in which nothing at all comes from the broker, before an answer is given up.
    """

    def __init__(self, reader: Reader, lose: Lose, patience: float) -> None:
        self._reader = reader
        self._lose = lose
        self._patience = patience

    async def ask(self, what: str, question: Coroutine[Any, Any, T]) -> T | None:
        """Ask a question."""
        asking = asyncio.ensure_future(question)
        try:
            if not await outlast([asking], self._patience, lambda: self._reader.moved_at):
                raise TimeoutError
            return asking.result()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `lose` tells it, and the session logs it.
            asking.cancel()
            raise_if_cancelled()
            self._lose(f"{what} failed", error)
            return None


async def unless_lost(question: Coroutine[Any, Any, object], lost: asyncio.Future[str]) -> None:
    """Wait for the end of something, but no longer than for the channel's loss."""
    asking = asyncio.ensure_future(question)
    either: list[asyncio.Future[Any]] = [asking, lost]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()
