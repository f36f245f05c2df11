"""Background loops: their ends are noticed, and a stop lets them finish what they have begun."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from runtime import background
from runtime.background import Endless, running, until, vital
from tests.conftest import DEADLINE_SECONDS, eventually


class Work:
    """A loop that has begun something by the time that it is stopped."""

    def __init__(self, finish: Callable[[], Awaitable[None]] | None = None) -> None:
        self.began = False
        self.finished = False
        self._finish = finish
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        self.began = True
        await self._stopping.wait()
        if self._finish:
            await self._finish()
        self.finished = True

    def stop(self) -> None:
        self._stopping.set()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    return sent


async def hang() -> None:
    await asyncio.Event().wait()


async def end_cancelled() -> None:
    raise asyncio.CancelledError  # As when something that the loop waits for was cancelled.


async def fail() -> None:
    raise LookupError("a bug")


async def end() -> None:
    pass


async def test_a_stop_lets_loops_finish_what_they_have_begun(signals: list[int]) -> None:
    async def finish() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    work = Work(finish)
    with capture_logs() as logs:
        async with running({"work": work}, stop_seconds=DEADLINE_SECONDS):
            await eventually(lambda: work.began)
    assert work.finished
    assert (signals, logs) == ([], [])


async def test_what_does_not_stop_in_time_is_cancelled_and_named(signals: list[int]) -> None:
    with capture_logs() as logs:
        async with running({"slow": Work(hang), "quick": Work()}, stop_seconds=0.05):
            pass
    assert [(entry["event"], entry["loop"]) for entry in logs] == [("process.gave_up", "slow")]
    assert signals == []


@pytest.mark.parametrize("ending", [fail, end_cancelled, end])
async def test_a_process_that_loses_what_it_lives_for_stops(
    ending: Callable[[], Awaitable[None]], signals: list[int]
) -> None:
    """A web process without its relay would look healthy and accept tasks that nobody dispatches."""
    other, lost = Work(), Work(ending)
    with capture_logs() as logs:
        async with running({"lost": lost, "other": other}, stop_seconds=DEADLINE_SECONDS):
            await eventually(lambda: lost.began)
            lost.stop()
            await eventually(lambda: signals)
    assert signals == [signal.SIGTERM]
    assert other.finished
    assert [(entry["event"], entry["loop"], entry["cancelled"]) for entry in logs] == [
        ("process.failed", "lost", ending is end_cancelled)
    ]


async def test_a_loop_that_fails_while_it_stops_is_told_in_the_log(signals: list[int]) -> None:
    with capture_logs() as logs:
        async with running({"work": Work(fail)}, stop_seconds=DEADLINE_SECONDS):
            pass
    assert [(entry["event"], entry["loop"]) for entry in logs] == [("process.failed", "work")]
    assert signals == []


async def test_what_is_endless_is_cut_off(signals: list[int]) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await hang()

    with capture_logs() as logs:
        async with running({"work": Endless(work)}, stop_seconds=DEADLINE_SECONDS):
            await begun.wait()
    assert (signals, logs) == ([], [])


@pytest.mark.parametrize("stop_seconds", [DEADLINE_SECONDS, 0.01], ids=["endless", "given up"])
async def test_a_stop_that_a_library_swallows_is_told_again(
    monkeypatch: pytest.MonkeyPatch, signals: list[int], stop_seconds: float
) -> None:
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.01)
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await hang()
        await hang()

    loop = Endless(work) if stop_seconds == DEADLINE_SECONDS else Work(work)
    async with asyncio.timeout(DEADLINE_SECONDS / 10), running({"work": loop}, stop_seconds=stop_seconds):
        await eventually(lambda: begun.is_set() or isinstance(loop, Work))
    assert signals == []


async def test_an_endless_loop_that_ends_cancelled_stops_the_process(signals: list[int]) -> None:
    with capture_logs():
        async with running({"work": Endless(end_cancelled)}, stop_seconds=DEADLINE_SECONDS):
            await eventually(lambda: signals)
    assert signals == [signal.SIGTERM]


async def test_a_task_group_does_not_overlook_vital_work_that_ends_cancelled() -> None:
    async def work_together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(vital(hang()))
            group.create_task(vital(end_cancelled()))

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await asyncio.wait_for(work_together(), DEADLINE_SECONDS)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(vital(hang()))
        await asyncio.sleep(0)
        asked.cancel()
    assert asked.cancelled()


async def test_work_is_done_until_a_stop() -> None:
    async def answer() -> int:
        return 42

    stopping = asyncio.Event()
    assert await until(stopping, answer()) == 42
    waiting = asyncio.create_task(until(stopping, hang()))
    await asyncio.sleep(0)
    stopping.set()
    await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    assert await until(stopping, answer()) is None
    stopping.clear()
    with pytest.raises(LookupError):
        await until(stopping, fail())
