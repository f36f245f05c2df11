"""N asyncio consumers: each takes one task, makes one call to service A, and reports one outcome."""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog

from configurator import metrics
from configurator.service_a import ServiceA
from configurator.settings import Settings
from messaging.channel import Channel
from messaging.deliveries import Delivery, acknowledge
from messaging.frames import Letter
from messaging.messages import ConfigureTask, DecodeError, Outcome, OutcomeKind
from messaging.publishing import Publication
from messaging.session import Session
from runtime.batching import Batcher

log = structlog.stdlib.get_logger(__name__)

PROBE_SECONDS = 1.0
REPUBLISH_SECONDS = 0.5
REPORT_BATCH = 500

Key = tuple[UUID, int]
"""One attempt at one task."""


@dataclass(slots=True, eq=False)
class Call:
    """A task taken, until its outcome is with the broker.

    `deliveries` are all that brought it: after a lost connection the broker brings a running call's task once more,
    and only that delivery can still be acknowledged. `taken_at`: in seconds of the monotonic clock.
    """

    task: ConfigureTask
    deliveries: list[Delivery]
    taken_at: float = field(default_factory=time.monotonic)


class Consumers:
    """The consumers, and the intake that feeds them from one channel after the other.

    No work is taken while service A cannot be reached. A redelivered task is never called for blindly: some process
    may still be calling A for it, and A goes on after its caller has died.
    """

    def __init__(self, session: Session, service_a: ServiceA, settings: Settings) -> None:
        self._session = session
        self._service_a = service_a
        self._settings = settings
        self._calls: dict[Key, Call] = {}
        self._waiting: asyncio.Queue[Call] = asyncio.Queue()
        self._reports = Batcher("report", self._publish, max_batch=REPORT_BATCH, max_waiting=math.inf, timeout=math.inf)
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._unsubscribed = asyncio.Event()
        self._unsubscribed.set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self) -> None:
        """Consume until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_in())
            group.create_task(self._watch_service_a())
            for _ in range(self._settings.concurrency):
                group.create_task(self._consume())

    async def drain(self) -> None:
        """Take no more work, and wait until every outcome is with the broker."""
        self._stopping.set()
        await self._unsubscribed.wait()
        log.info("configurator.draining", calls=len(self._calls))
        await self._idle.wait()

    def in_flight(self) -> int:
        """Count the tasks taken whose outcome is not with the broker yet."""
        return len(self._calls)

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
            call = self._waiting.get_nowait()
            if channel.lost.done():
                # The broker brings it again, perhaps to another process: this one must not begin it any more.
                del self._calls[_key(call.task)]
                self._settle()
            else:
                self._spawn(self._report(call, _unmade(call.task, OutcomeKind.NOT_STARTED)))

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
        key = _key(task)
        if running := self._calls.get(key):
            running.deliveries.append(delivery)
            metrics.REDELIVERED.labels("joined").inc()
            log.info("call.joined", task_id=str(task.task_id), attempt=task.attempt)
            return
        call = self._calls[key] = Call(task, [delivery])
        self._idle.clear()
        if delivery.redelivered:
            metrics.REDELIVERED.labels("interrupted").inc()
            log.warning("call.interrupted", task_id=str(task.task_id), attempt=task.attempt)
            hold = task.time_limit_seconds + self._settings.lateness_seconds
            self._spawn(self._report(call, _unmade(task, OutcomeKind.INTERRUPTED, hold)))
        else:
            self._waiting.put_nowait(call)

    async def _consume(self) -> None:
        while True:
            call = await self._waiting.get()
            task = call.task
            if time.monotonic() > call.taken_at + self._settings.lateness_seconds:
                # Calls of before a reconnection hold the consumers. The reconciler counts from when a task is taken.
                await self._report(call, _unmade(task, OutcomeKind.NOT_STARTED))
                continue
            try:
                outcome = await self._service_a.configure(task)
            except Exception:
                log.exception("call.bug", task_id=str(task.task_id), attempt=task.attempt)
                outcome = _unmade(task, OutcomeKind.UNKNOWN, task.time_limit_seconds)
            if outcome.kind is not OutcomeKind.SUCCESS:
                log.info(
                    "call.ended",
                    task_id=str(task.task_id),
                    attempt=task.attempt,
                    outcome=outcome.kind.value,
                    reason=outcome.reason,
                )
            await self._report(call, outcome)

    async def _report(self, call: Call, outcome: Outcome) -> None:
        """Publish the outcome until the broker has it safe, and only then acknowledge."""
        while await self._reports.submit((call, outcome)) is not Publication.CONFIRMED:
            await asyncio.sleep(REPUBLISH_SECONDS)
        metrics.OUTCOMES.labels(outcome.kind.value).inc()

    async def _publish(self, reports: Sequence[tuple[Call, Outcome]]) -> list[Publication]:
        channel = await self._session.channel()
        await channel.unblocked()  # A broker short of memory or disk keeps every copy that it is sent.
        letters = [Letter(outcome.message_id, outcome.encode()) for _, outcome in reports]
        publications = await channel.publish(self._settings.configured_key, letters)
        ended = [
            call
            for (call, _), publication in zip(reports, publications, strict=True)
            if publication is Publication.CONFIRMED
        ]
        for call in ended:
            del self._calls[_key(call.task)]
        acknowledge(delivery for call in ended for delivery in call.deliveries)
        self._settle()
        return publications

    async def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        await delivery.channel.dead_letter(self._settings.to_configure_queue, delivery, reason)
        acknowledge([delivery])

    async def _watch_service_a(self) -> None:
        while True:
            await self._service_a.unreachable.wait()
            log.warning("service_a.unreachable", url=self._service_a.address)
            with metrics.PAUSED.track_inprogress():
                await asyncio.sleep(PROBE_SECONDS)
                while not await self._service_a.probe():
                    await asyncio.sleep(PROBE_SECONDS)
            log.info("service_a.reachable", url=self._service_a.address)

    def _settle(self) -> None:
        if not self._calls:
            self._idle.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _key(task: ConfigureTask) -> Key:
    return task.task_id, task.attempt


def _unmade(task: ConfigureTask, kind: OutcomeKind, hold_seconds: float = 0) -> Outcome:
    """Make the outcome of an attempt for which this process has no answer of service A's."""
    return Outcome(task_id=task.task_id, attempt=task.attempt, kind=kind, hold_seconds=hold_seconds)
