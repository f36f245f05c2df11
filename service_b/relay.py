"""The relay: from the task table to the broker (transactional outbox)."""

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import datetime

import asyncpg
import structlog

from messaging.channel import Channel
from messaging.frames import Letter
from messaging.messages import ConfigureTask
from messaging.publishing import Publication
from messaging.sealing.suite import is_sealed
from messaging.session import Session
from messaging.settings import BrokerSettings
from runtime import clock
from runtime.background import until
from service_b import metrics
from service_b.database import STORAGE_ERRORS
from service_b.room import Room
from service_b.tasks import claims, restraint, turns
from service_b.tasks.claims import Dispatch
from service_b.tasks.clock import Clock
from service_b.tasks.lanes import Lanes

log = structlog.stdlib.get_logger(__name__)

BATCH = 300
LOOK_SECONDS = 0.05
"""So often the relay looks whether there is room again, while more is due than there is room for."""
READY_SECONDS = 1.0
"""So often it asks the broker, too."""
POLL_SECONDS = 1.0
"""An insert wakes only its own process; the timer finds tasks whose process has died or has no broker."""
GATHER_SECONDS = 0.01
"""One claim for all that is inserted meanwhile; next to a call of a minute nobody notices."""
EXTRA = 8
"""More messages than there is room for, of single tasks, where it is the bulk that has filled the queue."""
PAUSE_SECONDS = 1.0
SILENT_ENDS = 20
"""After so many calls in a row without an answer of service A's it is spared, until it answers one."""
SPARING_SECONDS = 5.0
"""One task in that time is let through then, by whichever relay."""


class Relay:
    """Claims due tasks as far as the queue has room, and publishes them.

    A claim is committed before its publish, so a process that dies in between leaves a dispatched task without a
    message, which the maintenance finds. What the broker may not have is made due again at once: should it have it all
    the same, only one of the two messages gets a lease.
    """

    def __init__(
        self,
        session: Session,
        pool: asyncpg.Pool,
        settings: BrokerSettings,
        wake: asyncio.Event,
        internal: Clock,
        *,
        in_turn: bool = False,
        poll_seconds: float = POLL_SECONDS,
        sparing_seconds: float = SPARING_SECONDS,
    ) -> None:
        self._poll_seconds = poll_seconds
        self._sparing_seconds = sparing_seconds
        self._session = session
        self._pool = pool
        self._settings = settings
        self._wake = wake
        self._internal = internal
        self._stopping = asyncio.Event()
        self._lanes = Lanes()
        # Set where the clients have names.
        self._turns = Lanes() if in_turn else None
        # Whether the last claim may have left something behind: only then does it matter whose turn it is.
        self._is_behind = True
        self._room = Room()
        # From when on the next look has to look.
        self._since: datetime | None = None
        # When to ask the broker again.
        self._ask_at = 0.0
        # Whether more may be due than has been claimed.
        self._more = False
        # Whether bulk has been claimed since all that was due was.
        self._has_bulk = False
        self._sparing = False

    async def run(self) -> None:
        """Relay until stopped, over one channel after the other."""
        while channel := await until(self._stopping, anext(self._session)):
            channel.lost.add_done_callback(lambda _: self._wake.set())
            while not channel.lost.done() and not self._stopping.is_set():
                try:
                    await self._relay(channel)
                except STORAGE_ERRORS as error:
                    log.warning("relay.storage_unavailable", error=repr(error), retry_in=PAUSE_SECONDS)
                    await until(self._stopping, asyncio.sleep(PAUSE_SECONDS))
                except Exception:
                    log.exception("relay.bug", retry_in=PAUSE_SECONDS)
                    await until(self._stopping, asyncio.sleep(PAUSE_SECONDS))

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is claimed has been published."""
        self._stopping.set()

    async def _relay(self, channel: Channel) -> None:
        """Look, claim, publish, rest. A stop cuts off all but what is between a claim and its publish."""
        self._wake.clear()
        room = await until(self._stopping, self._look(channel))
        if room is None or channel.lost.done():
            return
        # Not all of a large room at once: others look and claim at the same time.
        if (limit := min(room, BATCH)) > 0:
            dispatches = await self._claim(limit)
            self._more = len(dispatches) == limit
            has_bulk = self._has_bulk or any(dispatch.bulk for dispatch in dispatches)
            self._has_bulk = self._more and has_bulk
            if dispatches:
                await self._dispatch(channel, dispatches)
        elif (
            self._has_bulk
            and not self._sparing
            and room + EXTRA > 0
            and (dispatches := await self._claim(room + EXTRA, only_single=True))
        ):
            await self._dispatch(channel, dispatches)
        await until(self._stopping, self._rest(room))

    async def _rest(self, room: int) -> None:
        if self._more:
            await asyncio.sleep(0 if room >= BATCH else PAUSE_SECONDS if self._sparing else LOOK_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds):
                self._more = await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)

    async def _claim(self, limit: int, *, only_single: bool = False) -> list[Dispatch]:
        latest = self._internal.at_most()
        if self._turns and self._is_behind:
            dispatches = await turns.claim_in_turn(
                self._pool, limit, self._turns, latest=latest, only_single=only_single
            )
        else:
            dispatches = await claims.claim(self._pool, limit, self._lanes, latest=latest, only_single=only_single)
        self._is_behind = only_single or len(dispatches) == limit
        return dispatches

    async def _look(self, channel: Channel) -> int:
        """Tell for how many tasks there is room, as soon as the broker takes any."""
        await channel.unblocked()
        ready = None
        if clock.now() >= self._ask_at:
            ready = await channel.ready_messages(self._settings.to_configure_queue)
            self._ask_at = clock.now() + READY_SECONDS
        seen = await restraint.look(self._pool, self._since)
        self._since = seen.since
        room = self._room.look(clock.now(), dispatched=seen.dispatched, begun=seen.begun, ready=ready)
        if self._sparing != (seen.silent_ends >= SILENT_ENDS):
            self._sparing = not self._sparing
            metrics.SPARED.set(self._sparing)
            log.warning("service_a.spared" if self._sparing else "service_a.answers", silent_ends=seen.silent_ends)
        if self._sparing and room > 0:
            return int(await restraint.let_through(self._pool, self._sparing_seconds))
        return room

    async def _dispatch(self, channel: Channel, dispatches: list[Dispatch]) -> None:
        letters = [(dispatch, letter) for dispatch in dispatches if (letter := _write(dispatch))]
        publications = await channel.publish(self._settings.to_configure_key, [letter for _, letter in letters])
        for publication, count in Counter(publications).items():
            metrics.DISPATCHED.labels(publication.name.lower()).inc(count)
        unsent = [
            (dispatch.id, dispatch.attempt)
            for (dispatch, _), publication in zip(letters, publications, strict=True)
            if publication is not Publication.CONFIRMED
        ]
        if unsent:
            # What somebody else holds is left to the maintenance.
            held = await claims.make_due_again(self._pool, unsent)
            log.warning("relay.unsent", tasks=len(unsent), held=len(held))
        if unsent and not channel.lost.done():
            await asyncio.sleep(PAUSE_SECONDS)
            # A queue that was full goes on refusing what comes by the same channel, though its limit may be gone.
            channel.lose("messages were not accepted")


def _write(dispatch: Dispatch) -> Letter | None:
    """Make an attempt's message; None when it cannot be encoded: the task ends at its deadline then."""
    try:
        message = ConfigureTask(
            v=4 if dispatch.sealed_for else 3 if is_sealed(dispatch.parameters) else 2,
            task_id=dispatch.id,
            attempt=dispatch.attempt,
            equipment_id=dispatch.equipment_id,
            timeout_in_seconds=dispatch.timeout_seconds,
            time_limit_seconds=dispatch.time_limit_seconds,
            parameters=dispatch.parameters,
            sealed_for=dispatch.sealed_for,
        )
        return Letter(message.message_id, message.encode())
    except ValueError:
        log.exception("relay.unencodable", task_id=str(dispatch.id))
        return None
