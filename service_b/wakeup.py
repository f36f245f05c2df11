"""Hearing that tasks became due which this process did not insert itself."""

import asyncio

import structlog

from service_b.database import STORAGE_ERRORS, DatabaseSettings, connect
from service_b.tasks import deployment

log = structlog.stdlib.get_logger(__name__)

CHECK_SECONDS = 10.0


async def listen(settings: DatabaseSettings, wake: asyncio.Event, *, check_seconds: float = CHECK_SECONDS) -> None:
    """Set `wake` at each notification, until cancelled. The relay's timer bridges the times without a connection."""
    while True:
        try:
            connection = await connect(settings)
            try:
                await connection.add_listener(await deployment.name_due(connection), lambda *_: wake.set())
                wake.set()
                while True:
                    await asyncio.sleep(check_seconds)
                    await connection.execute("SELECT 1")  # A silent network would leave us listening to nobody.
            finally:
                connection.terminate()
        except STORAGE_ERRORS as error:
            log.warning("wakeup.storage_unavailable", error=repr(error), retry_in=check_seconds / 10)
            await asyncio.sleep(check_seconds / 10)
