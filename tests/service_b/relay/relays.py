"""A relay at work, and what it has published."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aiormq
import asyncpg
from aiormq.abc import AbstractChannel

from messaging.messages import ConfigureTask
from messaging.session import Session
from messaging.settings import BrokerSettings
from service_b.database import Queries
from service_b.relay import POLL_SECONDS, SPARING_SECONDS, Relay
from service_b.tasks import claims, leases
from service_b.tasks.claims import Dispatch
from service_b.tasks.clock import Clock
from service_b.tasks.lanes import Lanes
from tests.conftest import eventually
from tests.queues import count_ready, patient, take
from tests.tasks import call_lease, states

DEVICES = [f"DEVICE{number}" for number in range(600)]


class Watch:
    """Counts claims that found nothing, so that a test knows when the relay has nothing left to do."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.idle = 0

    async def claim(self, connection: Queries, limit: int, lanes: Lanes, **others: Any) -> list[Dispatch]:
        claimed = await claims.claim(connection, limit, lanes, **others)
        self.idle += not claimed
        return claimed

    async def until_idle(self) -> None:
        """Return when the relay has looked twice more, and found nothing."""
        idle = self.idle
        await eventually(lambda: self.idle > idle)


NEVER = 3600.0
"""The timer never comes: what is relayed was announced."""


@dataclass
class Running:
    relay: Relay
    session: Session
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def relaying(
    settings: BrokerSettings,
    pool: asyncpg.Pool,
    *,
    poll_seconds: float = POLL_SECONDS,
    sparing_seconds: float = SPARING_SECONDS,
    internal: Clock | None = None,
    in_turn: bool = False,
) -> AsyncIterator[Running]:
    """A relay at work on a channel; at the end it must stop by itself, if it has a broker."""
    wake = asyncio.Event()
    internal = internal or Clock(settle_seconds=0)
    async with Session(settings, "relay") as session:
        relay = Relay(
            session,
            pool,
            settings,
            wake,
            internal,
            in_turn=in_turn,
            poll_seconds=poll_seconds,
            sparing_seconds=sparing_seconds,
        )
        running = asyncio.create_task(relay.run())
        try:
            await eventually(lambda: session.current)
            yield Running(relay, session, wake)
            relay.stop()
            if session.current:
                async with asyncio.timeout(60):
                    await running
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


@asynccontextmanager
async def channel_to(settings: BrokerSettings) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(patient(settings))
    yield await connection.channel()
    await connection.close()


async def attempts(channel: AbstractChannel, settings: BrokerSettings) -> list[tuple[UUID, int]]:
    """Take what was published: which attempts at which tasks."""
    bodies = [ConfigureTask.decode(message.body) for message in await take(channel, settings.to_configure_queue)]
    return [(message.task_id, message.attempt) for message in bodies]


async def begin_calls(pool: asyncpg.Pool, channel: AbstractChannel, settings: BrokerSettings) -> list[tuple[UUID, int]]:
    """Take what was published and ask for leases, as configurators with any number of slots do; return what began."""
    taken = await attempts(channel, settings)
    answers = await leases.grant(pool, [(id_, number, call_lease(id_, number)) for id_, number in taken])
    return [attempt for attempt, answer in zip(taken, answers, strict=True) if answer == "granted"]


async def holds(channel: AbstractChannel, settings: BrokerSettings, messages: int) -> bool:
    return await count_ready(channel, settings.to_configure_queue) >= messages


async def are(sql: asyncpg.Connection, ids: list[UUID], state: str) -> bool:
    return set(await states(sql, ids)) == {state}
