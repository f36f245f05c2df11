"""N asyncio consumers: each takes one task, makes one call to service A, and reports one outcome."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from configurator import metrics
from configurator.jobs import Job, Key, without_answer
from configurator.reports import Reports
from configurator.service_a import ServiceA
from configurator.settings import Settings
from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge
from messaging.messages import ConfigureTask, DecodeError, OutcomeKind
from messaging.session import Session
from runtime.background import vital
from runtime.clock import now

log = structlog.stdlib.get_logger(__name__)


class Consumers:
    """The consumers, and the intake that feeds them from one channel after the other.

    No work is taken while service A cannot be reached. A redelivered task is never called for blindly: some process
    may still be calling A for it, and A goes on after its caller has died.
    """

    def __init__(self, session: Session, service_a: ServiceA, settings: Settings) -> None:
        self._session = session
        self._service_a = service_a
        self._settings = settings
        self._reports = Reports(session, settings.configured_key, self._forget)
        self._jobs: dict[Key, Job] = {}
        """Every task taken, until its outcome is with the broker."""
        self._idle = asyncio.Event()
        """Set while there is no job."""
        self._idle.set()
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()
        """The jobs that no consumer has begun."""
        self._group = asyncio.TaskGroup()
        """All work, that which no consumer waits for included; should some of it fail, all ends."""
        self._stopping = asyncio.Event()
        """Set when nothing more may be taken."""
        self._unsubscribed = asyncio.Event()
        """Set while the broker brings nothing."""
        self._unsubscribed.set()

    async def run(self) -> None:
        """Consume until stopped, and every outcome is with the broker."""
        async with asyncio.TaskGroup() as self._group:
            consumers = [self._consume() for _ in range(self._settings.concurrency)]
            tasks = [self._spawn(work) for work in (self._take_in(), self._service_a.watch(), *consumers)]
            await self._stopping.wait()
            await self._unsubscribed.wait()
            log.info("configurator.draining", calls=len(self._jobs))
            await self._idle.wait()
            for task in tasks:
                task.cancel()

    def stop(self) -> None:
        """Take no more work; `run` returns when that which was taken is done."""
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
        while not self._waiting.empty():
            job = self._waiting.get_nowait()
            if channel.lost.done():
                # The broker brings it again, perhaps to another process: this one must not begin it any more.
                self._forget(job)
            else:
                self._spawn(self._reports.report(job, without_answer(job.task, OutcomeKind.NOT_STARTED)))

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
        job = Job(task, [delivery])
        if running := self._jobs.get(job.key):
            running.deliveries.append(delivery)
            metrics.REDELIVERED.labels("joined").inc()
            log.info("call.joined", task_id=str(task.task_id), attempt=task.attempt)
            return
        self._jobs[job.key] = job
        self._idle.clear()
        if delivery.redelivered:
            metrics.REDELIVERED.labels("interrupted").inc()
            log.warning("call.interrupted", task_id=str(task.task_id), attempt=task.attempt)
            hold = task.time_limit_seconds + self._settings.lateness_seconds
            self._spawn(self._reports.report(job, without_answer(task, OutcomeKind.INTERRUPTED, hold)))
        else:
            self._waiting.put_nowait(job)

    async def _consume(self) -> None:
        while True:
            job = await self._waiting.get()
            task = job.task
            if now() > job.taken_at + self._settings.lateness_seconds:
                # All consumers may still be busy with calls from before a reconnection, so this task waited. The
                # reconciler assumes that a call starts within `lateness_seconds` of delivery: later, give it back.
                await self._reports.report(job, without_answer(task, OutcomeKind.NOT_STARTED))
                continue
            try:
                outcome = await self._service_a.configure(task)
            except Exception:
                log.exception("call.bug", task_id=str(task.task_id), attempt=task.attempt)
                outcome = without_answer(task, OutcomeKind.UNKNOWN, task.time_limit_seconds)
            if outcome.kind is not OutcomeKind.SUCCESS:
                log.info(
                    "call.ended",
                    task_id=str(task.task_id),
                    attempt=task.attempt,
                    outcome=outcome.kind.value,
                    reason=outcome.reason,
                )
            await self._reports.report(job, outcome)

    async def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        await delivery.channel.dead_letter(self._settings.to_configure_queue, delivery, reason)
        acknowledge([delivery])

    def _forget(self, job: Job) -> None:
        del self._jobs[job.key]
        if not self._jobs:
            self._idle.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(vital(work))
