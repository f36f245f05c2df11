"""Asking the broker by aiormq, whose answers may end in any exception."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel

T = TypeVar("T")


def raise_if_cancelled() -> None:
    """Tell our own cancellation from aiormq's: it swallows ours where it closes, and raises one where it loses."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


async def ask(what: str, question: Coroutine[Any, Any, T], lose: Callable[[str], None]) -> T | None:
    """Ask the broker. Without an answer the channel is lost, and the answer None.

    aiormq ends what waits on a connection that breaks with many an exception: a bare one, and CancelledError.
    """
    try:
        return await question
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `lose` tells it, and the session logs it.
        raise_if_cancelled()
        lose(f"{what} failed: {error!r}")
        return None


async def count(amqp: AbstractChannel, queue: str, lose: Callable[[str], None], timeout: float) -> tuple[int, int]:
    """Count a queue's messages that no reader has taken yet, and its consumers; both 0 without an answer."""
    answer = await ask("passive declare", amqp.queue_declare(queue, passive=True, timeout=timeout), lose)
    return (answer.message_count or 0, answer.consumer_count or 0) if answer else (0, 0)
