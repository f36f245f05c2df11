"""The batcher: natural group commit that keeps every caller's item and answers each one for itself."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import clock
from runtime.batching import Batcher, BatcherFullError, FlushCancelledError
from tests.conftest import DEADLINE_SECONDS, eventually


class PoisonError(Exception):
    """The store refuses a row."""


class Store:
    """Doubles numbers, batch by batch, and may be held at the beginning of a flush."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.bad: frozenset[int] = frozenset()
        self.error: BaseException | None = None
        self.running = 0
        self.most_running = 0
        self.open = asyncio.Event()
        self.open.set()

    async def flush(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.open.wait()
            if self.error:
                raise self.error
            if self.bad & set(items):
                raise PoisonError(f"one of {len(items)}")
            return [2 * item for item in items]
        finally:
            self.running -= 1


def make(
    flush: Callable[[Sequence[int]], Awaitable[Sequence[int]]],
    *,
    max_batch: int = 100,
    max_waiting: int = 100,
    max_bytes: float = math.inf,
    timeout: float = math.inf,
    gather_seconds: float = 0.0,
    check_seconds: float = 0.01,
) -> Batcher[int, int]:
    return Batcher(
        "test",
        flush,
        max_batch=max_batch,
        max_waiting=max_waiting,
        max_bytes=max_bytes,
        size=lambda item: item,
        timeout=timeout,
        gather_seconds=gather_seconds,
        poison=(PoisonError,),
        check_seconds=check_seconds,
    )


async def submit_all(batcher: Batcher[int, int], items: Sequence[int]) -> list[int | BaseException]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await asyncio.gather(*map(batcher.submit, items), return_exceptions=True)


async def held(store: Store, batcher: Batcher[int, int], first: int = 0) -> asyncio.Task[int]:
    """Bring the batcher into the middle of a flush of one item."""
    store.open.clear()
    task = asyncio.create_task(batcher.submit(first))
    await eventually(lambda: store.running)
    return task


async def test_each_caller_gets_its_own_result() -> None:
    store = Store()
    assert await submit_all(make(store.flush), range(10)) == [2 * item for item in range(10)]


async def test_an_idle_batcher_flushes_at_once_and_a_busy_one_takes_all_that_gathered() -> None:
    store = Store()
    batcher = make(store.flush)
    first = await held(store, batcher)
    rest = asyncio.create_task(submit_all(batcher, range(1, 21)))
    await eventually(lambda: len(batcher._waiting) == 20)
    assert store.batches == [[0]]
    store.open.set()
    assert await first == 0
    assert await rest == [2 * item for item in range(1, 21)]
    assert store.batches == [[0], list(range(1, 21))]


async def test_one_flush_runs_at_a_time_and_none_is_larger_than_allowed() -> None:
    store = Store()
    batcher = make(store.flush, max_batch=7)
    first = await held(store, batcher)
    rest = asyncio.create_task(submit_all(batcher, range(1, 51)))
    await eventually(lambda: len(batcher._waiting) == 50)
    store.open.set()
    await asyncio.gather(first, rest)
    assert [len(batch) for batch in store.batches] == [1, 7, 7, 7, 7, 7, 7, 7, 1]
    assert store.most_running == 1


async def test_too_many_waiting_are_refused_at_once_and_the_others_are_served() -> None:
    store = Store()
    batcher = make(store.flush, max_waiting=3)
    first = await held(store, batcher)
    waiting = asyncio.create_task(submit_all(batcher, [1, 2, 3]))
    await eventually(lambda: len(batcher._waiting) == 3)
    assert isinstance((await submit_all(batcher, [4]))[0], BatcherFullError)
    store.open.set()
    assert (await first, await waiting) == (0, [2, 4, 6])
    assert await batcher.submit(4) == 8


async def test_too_many_bytes_waiting_are_refused_at_once_and_are_free_again_when_taken_or_told() -> None:
    store = Store()
    batcher = make(store.flush, max_bytes=10, timeout=0.05)
    first = await held(store, batcher, 10)
    waiting = asyncio.create_task(submit_all(batcher, [4, 6]))
    await eventually(lambda: len(batcher._waiting) == 2)
    with pytest.raises(BatcherFullError):
        await batcher.submit(1)
    told = await waiting
    assert [type(error) for error in told] == [TimeoutError] * 2
    last = asyncio.create_task(batcher.submit(10))
    await eventually(lambda: batcher._waiting)
    store.open.set()
    await asyncio.wait({first, last})
    assert await submit_all(batcher, [10]) == [20]
    assert batcher._waiting_bytes == 0
    assert {4, 6}.isdisjoint(item for batch in store.batches for item in batch)


@given(st.lists(st.booleans(), min_size=1, max_size=24), st.integers(1, 8))
def test_only_the_items_that_the_store_refuses_fail(bad: list[bool], max_batch: int) -> None:
    async def scenario() -> None:
        store = Store()
        store.bad = frozenset(item for item, is_bad in enumerate(bad) if is_bad)
        results = await submit_all(make(store.flush, max_batch=max_batch), range(len(bad)))
        for item, result in enumerate(results):
            assert isinstance(result, PoisonError) if item in store.bad else result == 2 * item
        # Halving, not one by one: a batch without a bad item is never asked for again.
        good = [batch for batch in store.batches if not store.bad & set(batch)]
        assert sum(map(len, good)) == len(bad) - len(store.bad)

    asyncio.run(scenario())


async def test_an_error_goes_to_every_caller_of_its_flush_and_the_next_flush_works() -> None:
    store = Store()
    batcher = make(store.flush)
    first = await held(store, batcher)
    store.error = ConnectionError("away")
    rest = asyncio.create_task(submit_all(batcher, [1, 2, 3]))
    await eventually(lambda: len(batcher._waiting) == 3)
    store.open.set()
    with pytest.raises(ConnectionError):
        await first
    assert await rest == [store.error] * 3
    assert store.batches == [[0], [1, 2, 3]]  # Not halved: nobody's row is at fault.
    store.error = None
    assert await batcher.submit(4) == 8


async def test_a_flush_that_answers_too_few_leaves_nobody_waiting() -> None:
    async def flush(items: Sequence[int]) -> Sequence[int]:
        return list(items)[:-1]

    batcher = make(flush)
    results = await submit_all(batcher, [1, 2, 3])
    assert results[:2] == [1, 2]
    assert isinstance(results[2], ValueError)


async def test_the_item_of_a_caller_that_goes_away_is_dropped_unless_a_flush_has_taken_it() -> None:
    store = Store()
    batcher = make(store.flush)
    flushing = await held(store, batcher)
    gathered = asyncio.create_task(batcher.submit(1))
    other = asyncio.create_task(batcher.submit(2))
    await eventually(lambda: len(batcher._waiting) == 2)
    flushing.cancel()
    gathered.cancel()
    await asyncio.wait({flushing, gathered})
    assert flushing.cancelled()
    assert gathered.cancelled()
    store.open.set()
    assert await other == 4
    assert store.batches == [[0], [2]]


async def test_an_item_whose_caller_was_told_before_its_batch_is_halved_is_dropped() -> None:
    store = Store()
    batcher = make(store.flush)
    store.open.clear()
    waiting = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
    await eventually(lambda: store.running)
    waiting[1].cancel()
    await asyncio.wait({waiting[1]})
    store.bad = frozenset({3})
    store.open.set()
    assert await waiting[0] == 2
    with pytest.raises(PoisonError):
        await waiting[2]
    assert store.batches == [[1, 2, 3], [1], [3]]


async def test_a_caller_that_goes_away_before_a_failing_flush_ends_disturbs_nobody() -> None:
    store = Store()
    batcher = make(store.flush)
    flushing = await held(store, batcher)
    store.error = ConnectionError("away")
    flushing.cancel()
    await asyncio.wait({flushing})
    store.open.set()
    await batcher.close()
    store.error = None
    assert await batcher.submit(1) == 2


async def test_closing_waits_for_the_last_flush() -> None:
    store = Store()
    batcher = make(store.flush)
    first = await held(store, batcher)
    rest = asyncio.create_task(submit_all(batcher, [1, 2]))
    await eventually(lambda: len(batcher._waiting) == 2)
    closing = asyncio.create_task(batcher.close())
    await asyncio.wait({closing}, timeout=0.05)
    assert not closing.done()
    store.open.set()
    await closing
    assert store.batches == [[0], [1, 2]]
    assert (await first, await rest) == (0, [2, 4])


async def test_closing_an_idle_batcher_returns() -> None:
    await make(Store().flush).close()


async def test_callers_that_have_waited_too_long_are_told_and_nothing_that_still_waited_is_flushed() -> None:
    store = Store()
    store.open.clear()
    batcher = make(store.flush, max_batch=2, timeout=0.05)
    callers = [asyncio.create_task(batcher.submit(item)) for item in range(5)]
    told = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in told] == [TimeoutError] * 5
    store.open.set()
    assert await batcher.submit(5) == 10, "one that has not waited that long gets its result"
    await batcher.close()
    assert store.batches == [[0, 1], [5]]


async def test_what_waited_through_a_suspension_of_the_machine_is_not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timers have stood still, so that the flush may end before any of them fires."""
    store = Store()
    batcher = make(store.flush, timeout=60, check_seconds=60)
    first = await held(store, batcher)
    waiting = asyncio.create_task(batcher.submit(1))
    await eventually(lambda: batcher._waiting)
    woken = clock.now() + 3600
    monkeypatch.setattr(clock, "now", lambda: woken)
    store.open.set()
    assert await first == 0
    with pytest.raises(TimeoutError):
        await waiting
    assert store.batches == [[0]]


async def test_a_busy_batcher_tells_nobody_who_is_served_in_time() -> None:
    store = Store()
    batcher = make(store.flush, timeout=60, check_seconds=0.001)
    for item in range(200):
        assert await batcher.submit(item) == 2 * item
        await asyncio.sleep(0.0002)
    await batcher.close()


async def test_a_flush_that_ends_cancelled_is_told_to_its_callers_and_the_next_one_works() -> None:
    """As when a library cancels what waits for a connection that it takes away."""
    store = Store()
    batcher = make(store.flush)
    first = await held(store, batcher)
    store.error = asyncio.CancelledError()
    rest = asyncio.create_task(submit_all(batcher, [1, 2]))
    await eventually(lambda: len(batcher._waiting) == 2)
    store.open.set()
    with pytest.raises(FlushCancelledError):
        await first
    assert [type(error) for error in await rest] == [FlushCancelledError] * 2
    store.error = None
    assert await batcher.submit(3) == 6


async def test_when_the_loop_is_closed_every_caller_is_told() -> None:
    store = Store()
    batcher = make(store.flush)
    first = await held(store, batcher)
    rest = asyncio.create_task(submit_all(batcher, [1, 2]))
    await eventually(lambda: len(batcher._waiting) == 2)
    assert batcher._flusher
    batcher._flusher.cancel()
    with pytest.raises(FlushCancelledError):
        await first
    assert [type(error) for error in await rest] == [FlushCancelledError] * 2
    await batcher.close()


async def test_a_flush_may_wait_for_more() -> None:
    store = Store()
    batcher = make(store.flush, gather_seconds=0.2)
    first = asyncio.create_task(batcher.submit(1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert list(await asyncio.gather(first, batcher.submit(2))) == [2, 4]
    assert store.batches == [[1, 2]]


async def test_a_flush_that_is_full_waits_for_nothing() -> None:
    store = Store()
    batcher = make(store.flush, gather_seconds=3600, max_batch=2)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await submit_all(batcher, [1, 2]) == [2, 4]
