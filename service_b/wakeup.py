"""Hearing that tasks became due which this process did not insert itself, and that tasks have ended."""

import asyncio
from collections.abc import Callable

import structlog

from service_b.database import STORAGE_ERRORS, DatabaseSettings, connect
from service_b.tasks import deployment

log = structlog.stdlib.get_logger(__name__)

CHECK_SECONDS = 10.0

FORGET_US = "SET tcp_user_timeout = '60s'"
"""The server keeps every notification until each listener has taken it: it shall not wait for one that stands still."""


async def listen(
    settings: DatabaseSettings,
    wake: asyncio.Event,
    hear_ended: Callable[[str], None],
    *,
    check_seconds: float = CHECK_SECONDS,
) -> None:
    """Set `wake` when tasks became due, and hand on which ones have ended (`Waits.hear`), until cancelled.

    There are times without a connection. The relay's timer bridges them, and whoever waits looks now and then.
    """
    while True:
        try:
            connection = await connect(settings)
            try:
                await connection.execute(FORGET_US)
                await connection.add_listener(await deployment.name_due(connection), lambda *_: wake.set())
                await connection.add_listener(
                    await deployment.name_ended(connection), lambda _connection, _pid, _name, tasks: hear_ended(tasks)
                )
                wake.set()
                while True:
                    await asyncio.sleep(check_seconds)
                    await connection.execute("SELECT 1")  # A silent network would leave us listening to nobody.
            finally:
                connection.terminate()
        except STORAGE_ERRORS as error:
            log.warning("wakeup.storage_unavailable", error=repr(error), retry_in=check_seconds / 10)
            await asyncio.sleep(check_seconds / 10)
