"""Asking the broker by aiormq, whose answers may end in any exception."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from aiormq.abc import AbstractChannel

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


async def ask(what: str, question: Coroutine[Any, Any, T], lose: Lose) -> T | None:
    """Ask the broker. Without an answer the channel is lost, and the answer None.

    aiormq ends what waits on a connection that breaks with many an exception: a bare one, and CancelledError.
    """
    try:
        return await question
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `lose` tells it, and the session logs it.
        raise_if_cancelled()
        lose(f"{what} failed", error)
        return None


async def unless_lost(question: Coroutine[Any, Any, object], lost: asyncio.Future[str]) -> None:
    """Wait for the end of something, but no longer than for the channel's loss."""
    asking = asyncio.ensure_future(question)
    either: list[asyncio.Future[Any]] = [asking, lost]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()


async def count(amqp: AbstractChannel, queue: str, lose: Lose, timeout: float) -> tuple[int, int]:
    """Count a queue's messages that no reader has taken yet, and its consumers; both 0 without an answer."""
    answer = await ask("passive declare", amqp.queue_declare(queue, passive=True, timeout=timeout), lose)
    return (answer.message_count or 0, answer.consumer_count or 0) if answer else (0, 0)
