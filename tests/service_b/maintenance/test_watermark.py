"""What the reconciler concludes from its looks at the queue."""

from datetime import UTC, datetime, timedelta

import pytest

import runtime.clock
from service_b.maintenance.reconciler import ROUND_SECONDS
from service_b.maintenance.watermark import OBSERVATIONS, Watermark

START = datetime(2026, 1, 1, tzinfo=UTC)
LONGEST_LIMIT_SECONDS = 3600 + 86400
"""The longest `timeoutInSeconds` and the longest `SERVICE_A_GRACE_SECONDS`."""


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runtime.clock, "now", lambda: clock.now)
    return clock


def observed(clock: Clock, *observations: tuple[float, float]) -> Watermark:
    """A watermark that learnt at each of these times that all dispatched before the other one was taken."""
    watermark = Watermark()
    for clock.now, taken_before in observations:
        watermark.observe(at(taken_before))
    return watermark


def test_without_an_observation_nothing_is_known() -> None:
    assert Watermark().known_taken_at(START) is None


def test_what_was_dispatched_before_an_observation_is_known_from_then_on(clock: Clock) -> None:
    watermark = observed(clock, (100, 10))
    assert watermark.known_taken_at(at(9.999)) == 100
    assert watermark.known_taken_at(at(10)) is None, "only what was dispatched before"
    assert watermark.known_taken_at(at(11)) is None


def test_the_first_observation_that_covers_a_dispatch_counts(clock: Clock) -> None:
    watermark = observed(clock, (100, 10), (101, 20), (102, 30))
    assert [watermark.known_taken_at(at(seconds)) for seconds in (5, 10, 15, 20, 29, 30)] == [
        100,
        101,
        101,
        102,
        102,
        None,
    ]


def test_an_observation_that_tells_nothing_new_changes_nothing(clock: Clock) -> None:
    """An answered canary tells of an earlier moment than an empty queue has told already."""
    watermark = observed(clock, (100, 10), (101, 30), (102, 20), (103, 30), (104, 40))
    assert [seconds for seconds, _ in watermark.observed] == [100, 101, 104]
    assert watermark.known_taken_at(at(25)) == 101


def test_observations_are_kept_for_longer_than_the_longest_call(clock: Clock) -> None:
    """Otherwise an attempt at such a call would never be overdue: the first observation would always be a young one."""
    ticks = int(LONGEST_LIMIT_SECONDS / ROUND_SECONDS)
    watermark = observed(clock, *((tick, tick) for tick in range(ticks)))
    assert watermark.known_taken_at(at(0.5)) == 1


def test_the_memory_for_observations_is_bounded_and_forgets_the_oldest(clock: Clock) -> None:
    watermark = observed(clock, *((tick, tick) for tick in range(OBSERVATIONS + 10)))
    assert len(watermark.observed) == OBSERVATIONS
    assert watermark.known_taken_at(at(0)) == 10, "later than in truth, never earlier"
