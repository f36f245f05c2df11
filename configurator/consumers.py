"""N asyncio consumers: each takes one task, asks for its lease, makes one call to service A, reports one outcome."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from configurator.jobs import Job
from configurator.leases import Leases
from configurator.reports import Reports
from configurator.service_a import ServiceA
from configurator.settings import Settings
from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge, give_back
from messaging.messages import ConfigureTask, DecodeError, Outcome, OutcomeKind
from messaging.session import Session
from runtime.background import vital

log = structlog.stdlib.get_logger(__name__)


class Consumers:
    """The consumers, and the intake that feeds them from one channel after the other.

    No work is taken while service A cannot be reached. While nobody grants leases, what was taken waits in hand: it is
    no more than there are consumers, and the web processes dispatch it again to others.
    """

    def __init__(self, session: Session, service_a: ServiceA, settings: Settings) -> None:
        self._session = session
        self._service_a = service_a
        self._settings = settings
        self._leases = Leases(settings.results_urls, self._is_wanted)
        self._reports = Reports(session, settings.configured_key)
        self._waiting: asyncio.Queue[Job | None] = asyncio.Queue()
        """The jobs that no consumer has begun; None ends a consumer."""
        self._group = asyncio.TaskGroup()
        """All work, that which no consumer waits for included; should some of it fail, all ends."""
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
        async with self._leases, asyncio.TaskGroup() as self._group:
            background = [self._spawn(work) for work in (self._take_in(), self._service_a.watch())]
            consumers = [self._spawn(self._consume()) for _ in range(self._settings.concurrency)]
            await self._stopping.wait()
            await self._unsubscribed.wait()
            for _ in consumers:
                self._waiting.put_nowait(None)
            log.info("configurator.draining")
            await asyncio.wait(consumers)
            for task in background:
                task.cancel()

    def stop(self) -> None:
        """Take no more work; `run` returns when that which was taken is done or given back."""
        self._stopping.set()

    async def _take_in(self) -> None:
        async for channel in self._session:
            while not channel.lost.done():
                await self._first(channel, self._service_a.reachable.wait())
                if self._stopping.is_set():
                    await asyncio.wait({channel.lost})
                elif not channel.lost.done():
                    self._unsubscribed.clear()
                    await self._take_from(channel)
                    self._unsubscribed.set()

    async def _take_from(self, channel: Channel) -> None:
        """Take work until the process stops, A cannot be reached, or the channel is lost."""
        consumer = await channel.consume(self._settings.to_configure_queue, self._settings.concurrency, self._receive)
        await self._first(channel, self._service_a.unreachable.wait())
        if not channel.lost.done():
            await channel.cancel(consumer)
        jobs = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
        give_back(job.delivery for job in jobs if job)

    async def _first(self, channel: Channel, condition: Coroutine[None, None, bool]) -> None:
        """Wait for a condition, but no longer than for the channel's loss or the process's stop."""
        waits = [asyncio.ensure_future(condition), asyncio.ensure_future(self._stopping.wait())]
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
        self._waiting.put_nowait(Job(task, delivery))

    async def _consume(self) -> None:
        while job := await self._waiting.get():
            if await self._begins(job):
                await self._reports.report(job, await self._call(job))

    async def _begins(self, job: Job) -> bool:
        """Ask for a job's lease until somebody says whether its call may begin, or nobody is to ask any more."""
        while (granted := await self._leases.ask(job)) is None:
            if not self._is_wanted(job):
                give_back([job.delivery])
                return False
        if not granted:
            acknowledge([job.delivery])
        return granted

    def _is_wanted(self, job: Job) -> bool:
        """Whether to ask for a job's lease.

        One that may have been granted is asked for again whatever happens but a stop: else the task would wait for a
        call that never comes.
        """
        if job.has_asked:
            return not self._stopping.is_set()
        return not (self._unsubscribed.is_set() or job.delivery.channel.lost.done())

    async def _call(self, job: Job) -> Outcome:
        if self._stopping.is_set():
            return job.hand_back("the configurator stops")
        try:
            outcome = await self._service_a.configure(job)
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(vital(work))
