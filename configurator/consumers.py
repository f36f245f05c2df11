"""N asyncio consumers: each takes one task, asks for its lease, makes one call to service A, reports one outcome."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from configurator.jobs import Job
from configurator.keys import Keys
from configurator.leases import Answer, Leases
from configurator.reports import Reports
from configurator.service_a import ServiceA
from configurator.settings import Settings
from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge, give_back
from messaging.messages import ConfigureTask, DecodeError, Outcome, OutcomeKind
from messaging.sealing.opener import OpenError
from messaging.session import Session
from runtime.background import end, vital

log = structlog.stdlib.get_logger(__name__)

AT_THE_DOOR = 400
"""How many calls may be about to begin, from asking for their leases to writing their requests: twice as many as ask
together, so that some ask while others write. More of them would only make each other late, and what has not asked can
be given back."""


class Consumers:
    """The consumers, and the intake that feeds them from one channel after the other.

    No work is taken while service A cannot be reached, nor while a key is missing that tasks are sealed for. While
    nobody grants leases, what was taken waits in hand: it is no more than there may be consumers, and the web processes
    dispatch it again to others.
    """

    def __init__(self, session: Session, service_a: ServiceA, keys: Keys, settings: Settings) -> None:
        self._session = session
        self._service_a = service_a
        self._keys = keys
        self._settings = settings
        self._leases = Leases(settings.results_urls, settings.lease_token)
        self._reports = Reports(session, settings.configured_key)
        self._waiting: deque[Job] = deque()
        """The jobs that no consumer has taken. A consumer comes and goes with its job: thousands that take turns would
        each be out of the processor's cache."""
        self._locked: list[Delivery] = []
        """What is sealed for a key that is not here, to be given back."""
        self._taken: set[Job] = set()
        """Those that a consumer has; the same in number."""
        self._at_the_door: set[Job] = set()
        """Those of them whose calls are about to begin."""
        self._group = asyncio.TaskGroup()
        """All consumers, and dead letters; should some of it fail, all ends."""
        self._stopping = asyncio.Event()
        """Set when nothing more may be taken."""
        self._unsubscribed = asyncio.Event()
        """Set while the broker brings nothing."""
        self._unsubscribed.set()

    @property
    def unready(self) -> str | None:
        """What a readiness check says of the leases."""
        return self._leases.unready

    async def run(self) -> None:
        """Consume until stopped, and every outcome is with the broker."""
        async with self._leases, asyncio.TaskGroup() as background:
            tasks = [background.create_task(vital(work)) for work in (self._take_in(), self._service_a.watch())]
            async with self._group:
                await self._stopping.wait()
                await self._unsubscribed.wait()
                log.info("configurator.draining", calls=len(self._taken))
            await end(*tasks)

    def stop(self) -> None:
        """Take no more work; `run` returns when that which was taken is done or given back."""
        self._stopping.set()

    async def _take_in(self) -> None:
        async for channel in self._session:
            while not channel.lost.done():
                await self._first(channel, self._may_take())
                if self._stopping.is_set():
                    await asyncio.wait({channel.lost})
                elif not channel.lost.done():
                    self._unsubscribed.clear()
                    await self._take_from(channel)
                    self._unsubscribed.set()

    async def _may_take(self) -> None:
        await self._keys.look_again()
        await self._service_a.reachable.wait()

    async def _take_from(self, channel: Channel) -> None:
        """Take work until the process stops, A cannot be reached, a key is missing, or the channel is lost."""
        consumer = await channel.consume(self._settings.to_configure_queue, self._settings.concurrency, self._receive)
        self._begin_more()  # A may have been away while the first deliveries came.
        await self._first(channel, self._service_a.unreachable.wait(), self._keys.missing.wait())
        if not channel.lost.done():
            await channel.cancel(consumer)
        give_back([*self._locked, *(job.delivery for job in self._waiting)])
        self._locked.clear()
        self._waiting.clear()

    async def _first(self, channel: Channel, *conditions: Coroutine[Any, Any, object]) -> None:
        """Wait for one of the conditions, but no longer than for the channel's loss or the process's stop."""
        waits = [asyncio.ensure_future(condition) for condition in (*conditions, self._stopping.wait())]
        everything: list[asyncio.Future[Any]] = [*waits, channel.lost]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _receive(self, delivery: Delivery) -> None:
        try:
            task = ConfigureTask.decode(delivery.body)
        except DecodeError as error:
            self._spawn(self._dead_letter(delivery, error.reason))
            return
        if self._keys.are_here(task):
            self._waiting.append(Job(task, delivery))
            self._begin_more()
        else:
            self._locked.append(delivery)

    def _begin_more(self) -> None:
        if self._stopping.is_set() or not self._service_a.reachable.is_set():
            return  # What waits goes back as soon as nothing more comes.
        room = min(self._settings.concurrency - len(self._taken), AT_THE_DOOR - len(self._at_the_door))
        for _ in range(min(room, len(self._waiting))):
            job = self._waiting.popleft()
            self._taken.add(job)
            self._at_the_door.add(job)
            self._spawn(self._consume(job))

    def _leave_the_door(self, job: Job) -> None:
        self._at_the_door.discard(job)
        self._begin_more()

    async def _consume(self, job: Job) -> None:
        if await self._may_begin(job):
            await self._reports.report(job, await self._call(job))
        self._taken.remove(job)
        self._leave_the_door(job)

    async def _may_begin(self, job: Job) -> bool:
        """Ask for a job's lease until somebody says whether its call may begin, or the process stops."""
        while (answer := await self._leases.ask(job)) in (Answer.UNDECIDED, Answer.UNANSWERED):
            if answer is Answer.UNDECIDED:
                self._leave_the_door(job)
            if self._stopping.is_set():
                give_back([job.delivery])
                return False
        if answer is Answer.REFUSED:
            acknowledge([job.delivery])
        return answer is Answer.GRANTED

    async def _call(self, job: Job) -> Outcome:
        if self._stopping.is_set():
            return job.hand_back("the configurator stops")
        try:
            job.parameters = self._keys.open(job.task)
            outcome = await self._service_a.configure(job, partial(self._leave_the_door, job))
        except OpenError:
            log.error("call.unopened", task_id=str(job.task.task_id), attempt=job.task.attempt)
            outcome = job.end(OutcomeKind.UNOPENED, "the parameters were sealed for another task, or tampered with")
        except Exception:
            log.exception("call.bug", task_id=str(job.task.task_id), attempt=job.task.attempt)
            outcome = job.end(OutcomeKind.UNKNOWN, "a bug", hold_seconds=max(0.0, job.seconds_left))
        if outcome.kind is not OutcomeKind.SUCCESS:
            log.info(
                "call.ended",
                task_id=str(job.task.task_id),
                attempt=job.task.attempt,
                outcome=outcome.kind.value,
                reason=outcome.reason,
            )
        return outcome

    async def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        await delivery.channel.dead_letter(self._settings.to_configure_queue, delivery, reason)
        acknowledge([delivery])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(vital(work))
