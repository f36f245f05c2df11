"""Takes what the relay publishes, as configurators with a slow service A do: the relay publishes only what is taken.

A statement and a purge now and then: so that next to nothing of the machine goes into it.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiormq
import asyncpg

from service_b.tasks.states import DISPATCHED
from tests.bench.stage import Room
from tests.queues import declare

EVERY_SECONDS = 0.05

BEGIN = f"""
WITH begun AS (
    UPDATE task SET begun_at = now(), lease = gen_random_uuid(), overdue_at = 'infinity'
    WHERE {DISPATCHED} RETURNING nextval('task_begun')
)
SELECT count(*) FROM begun
"""


@contextmanager
def taking(room: Room) -> Iterator[None]:
    """Begin all attempts that are dispatched, again and again, and empty the queue."""
    done = threading.Event()

    async def take() -> None:
        connection = await asyncpg.connect(room.database_url)
        broker = await aiormq.connect(room.amqp_url)
        channel = await broker.channel()
        await declare(channel, room.broker_settings)  # The processes, too, declare what is absent.
        while not done.is_set():
            await connection.execute(BEGIN)
            await channel.queue_purge(room.queues[0])
            await asyncio.sleep(EVERY_SECONDS)
        await connection.close()
        await broker.close()

    taker = threading.Thread(target=lambda: asyncio.run(take()))
    taker.start()
    try:
        yield
    finally:
        done.set()
        taker.join()
