"""The relay: from the task table to the broker (transactional outbox)."""

import asyncio
from collections import Counter
from uuid import UUID

import asyncpg
import structlog

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.messages import ConfigureTask
from messaging.publishing import Publication
from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime import clock
from runtime.background import until
from service_b import metrics
from service_b.database import STORAGE_ERRORS
from service_b.tasks import claims
from service_b.tasks.claims import Dispatch, Floor

log = structlog.stdlib.get_logger(__name__)

BATCH = 300
POLL_SECONDS = 1.0
"""An insert wakes only its own process; the timer finds tasks whose process has died or has no broker."""
GATHER_SECONDS = 0.01
"""One claim for all that is inserted meanwhile; next to a call of a minute nobody notices."""
PAUSE_SECONDS = 1.0


class Relay:
    """Claims due tasks and publishes each attempt at most once.

    A claim is committed before its publish, so a process that dies in between leaves a dispatched task without a
    message, which the reconciler finds. What certainly did not reach the broker is made due again here.
    """

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        settings: BrokerSettings,
        wake: asyncio.Event,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._poll_seconds = poll_seconds
        self._session = session
        self._pool = pool
        self._settings = settings
        self._wake = wake
        self._stopping = asyncio.Event()
        self._floor = Floor()
        self._unsent: list[tuple[UUID, int]] = []
        """Refused by the broker, and not made due again yet."""

    async def run(self) -> None:
        """Relay until stopped, over one channel after the other."""
        while channel := await until(self._stopping, anext(self._session)):
            channel.lost.add_done_callback(lambda _: self._wake.set())
            while not channel.lost.done() and not self._stopping.is_set():
                try:
                    await self._relay(channel)
                except STORAGE_ERRORS as error:
                    log.warning("relay.storage_unavailable", error=repr(error), retry_in=PAUSE_SECONDS)
                    await asyncio.sleep(PAUSE_SECONDS)
                except Exception:
                    log.exception("relay.bug", retry_in=PAUSE_SECONDS)
                    await asyncio.sleep(PAUSE_SECONDS)

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is claimed has been published."""
        self._stopping.set()
        self._wake.set()

    async def _relay(self, channel: Channel) -> None:
        self._wake.clear()
        await channel.unblocked()
        if channel.lost.done():
            return
        await self._take_back()
        claimed_at = clock.now()
        dispatches = await claims.claim(self._pool, BATCH, self._floor)
        if dispatches:
            await self._dispatch(channel, dispatches, claimed_at)
        if len(dispatches) == BATCH:
            return
        try:
            async with asyncio.timeout(self._poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_SECONDS)

    async def _take_back(self) -> None:
        """Make due again what was refused; what somebody else holds is kept, and tried again."""
        if self._unsent:
            self._unsent = await claims.make_due_again(self._pool, self._unsent)

    async def _dispatch(self, channel: Channel, dispatches: list[Dispatch], claimed_at: float) -> None:
        if clock.now() - claimed_at > self._settings.heartbeat_seconds:
            # This process stood still. The reconciler counts on a claim being published soon or never.
            channel.lose("a claim was held for too long")
        letters = [(dispatch, letter) for dispatch in dispatches if (letter := _write(dispatch))]
        publications = await channel.publish(self._settings.to_configure_key, [letter for _, letter in letters])
        unsent = []
        for (dispatch, _), publication in zip(letters, publications, strict=True):
            if publication.is_refused:
                unsent.append((dispatch.id, dispatch.attempt))
            elif publication is Publication.UNCERTAIN:
                log.warning("relay.uncertain", task_id=str(dispatch.id), attempt=dispatch.attempt)
        for publication, count in Counter(publications).items():
            metrics.DISPATCHED.labels(publication.name.lower()).inc(count)
        if unsent:
            self._unsent += unsent
            await self._take_back()
            log.warning("relay.unsent", tasks=len(unsent), retry_in=PAUSE_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
            # A queue that was full goes on refusing what comes by the same channel, though its limit may be gone.
            channel.lose("messages were refused")


def _write(dispatch: Dispatch) -> Letter | None:
    """Make an attempt's message; None when it cannot be encoded: the reconciler uses its attempts up then."""
    try:
        message = ConfigureTask(
            task_id=dispatch.id,
            attempt=dispatch.attempt,
            equipment_id=dispatch.equipment_id,
            timeout_in_seconds=dispatch.timeout_seconds,
            time_limit_seconds=dispatch.time_limit_seconds,
            parameters=dispatch.parameters,
        )
        return Letter(message.message_id, message.encode())
    except ValueError:
        log.exception("relay.unencodable", task_id=str(dispatch.id))
        return None
