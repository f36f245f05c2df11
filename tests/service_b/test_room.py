"""How much the relays keep in the queue, in simulated time: relays, a queue, and the slots that take from it."""

import heapq
import random
from collections.abc import Callable
from itertools import count, pairwise

import pytest

from service_b.room import LEAST, MOST, Room

LOOK_SECONDS = 0.05
COMMIT_SECONDS = 0.01
BATCH = 300
LOST_SECONDS = 10.0


class Simulation:
    """Any number of due tasks, `slots` that each take one and keep it for `call_seconds`, and `relays`.

    A message takes `delay` from its claim to its slot, and as long from there until its call is seen to begin. No more
    than `fastest` calls begin a second. What nobody takes is due again after `LOST_SECONDS`; its message stays.
    """

    def __init__(
        self,
        *,
        slots: int,
        call_seconds: Callable[[], float] = lambda: 0.01,
        relays: int = 1,
        delay: float = 0.05,
        fastest: float = 4000.0,
    ) -> None:
        self.now = 0.0
        self.slots, self.free = slots, slots
        self.dispatched: set[int] = set()
        self.queue: list[int] = []
        self.begun = 0
        self.busy_seconds = 0.0
        # Of each moment: the time, how many are under way or in the queue, and how many lie in the queue.
        self.seen: list[tuple[float, int, int]] = []
        self._call_seconds, self._delay, self._gap = call_seconds, delay, 1 / fastest
        self._next_begin = 0.0
        self._numbers, self._random = count(), random.Random(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for number in range(relays):
            self._relay(Room(), first=number * LOOK_SECONDS / relays)

    def run(self, seconds: float) -> int:
        """Let time pass; return how many calls began."""
        end, before = self.now + seconds, self.begun
        while self._events and self._events[0][0] <= end:
            at, _, happen = heapq.heappop(self._events)
            self.busy_seconds += (self.slots - self.free) * (at - self.now)
            self.now = at
            happen()
            while self.queue and self.free > 0:
                self._take(self.queue.pop(0))
            self.seen.append((self.now, max(len(self.dispatched), len(self.queue)), len(self.queue)))
        self.now = end
        return self.begun - before

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), happen))

    def _relay(self, room: Room, first: float) -> None:
        ready_at = 0.0

        def look() -> None:
            nonlocal ready_at
            ready = None
            if self.now >= ready_at:
                ready, ready_at = len(self.queue), self.now + 1
            free = room.look(self.now, dispatched=len(self.dispatched), begun=self.begun, ready=ready)
            claimed = [next(self._numbers) for _ in range(min(free, BATCH))]
            self._after(COMMIT_SECONDS, lambda: self.dispatched.update(claimed))  # Not seen before by other relays.
            self._after(self._delay, lambda: self.queue.extend(claimed))
            self._after(LOST_SECONDS, lambda: self.dispatched.difference_update(claimed))
            self._after(LOOK_SECONDS * self._random.uniform(1, 1.2), look)

        self._after(first, look)

    def _take(self, task: int) -> None:
        self.free -= 1
        self._next_begin = max(self._next_begin + self._gap, self.now + self._delay)

        def begin() -> None:
            self.dispatched.discard(task)
            self.begun += 1
            self._after(self._call_seconds(), end)

        def end() -> None:
            self.free += 1

        self._after(self._next_begin - self.now, begin)

    def most(self, since: float = 0.0) -> int:
        """How many were under way or in the queue at most."""
        return max(there for at, there, _ in self.seen if at >= since)


def test_an_empty_queue_grows_quickly() -> None:
    simulation = Simulation(slots=10_000)
    halves = [simulation.run(0.5) for _ in range(6)]
    assert all(after > 1.4 * before for before, after in pairwise(halves)), halves
    assert halves[-1] == 2000, "as fast as can be"


def test_fast_takers_always_find_something() -> None:
    simulation = Simulation(slots=1000)
    simulation.run(10)
    assert simulation.run(10) == 40_000
    assert min(there for at, there, _ in simulation.seen if at > 15) > 4000 * 10 * LOOK_SECONDS
    assert simulation.most() <= MOST


@pytest.mark.parametrize("relays", [1, 4])
def test_slow_takers_find_about_two_seconds_of_work(relays: int) -> None:
    call = random.Random(2)
    simulation = Simulation(slots=1000, call_seconds=lambda: call.uniform(30, 90), relays=relays)
    simulation.run(150)
    assert simulation.busy_seconds > 0.97 * 1000 * 150
    # 1,000 slots of a minute take 17 a second.
    assert simulation.most(since=100) < 64


@pytest.mark.parametrize("relays", [1, 4])
def test_slots_that_all_end_at_once_are_busy_again_at_once(relays: int) -> None:
    simulation = Simulation(slots=1000, call_seconds=lambda: 60, relays=relays)
    simulation.run(150)
    assert simulation.busy_seconds > 0.97 * 1000 * 150
    assert simulation.most() < 300


@pytest.mark.parametrize("relays", [1, 4])
def test_what_nobody_takes_is_not_added_to(relays: int) -> None:
    """Though each message is given up for lost every now and then, and so is not counted as dispatched any more."""
    simulation = Simulation(slots=0, relays=relays)
    simulation.run(100)
    assert simulation.most() == len(simulation.queue) == LEAST


@pytest.mark.parametrize("relays", [2, 4])
def test_relays_share_the_queue_without_agreement(relays: int) -> None:
    simulation = Simulation(slots=1000, relays=relays)
    simulation.run(15)
    assert 3900 < simulation.most() <= 5000
    simulation.free -= 1000
    simulation.run(5)
    assert 3900 < len(simulation.queue) <= 5000


def test_takers_that_grow_slow_find_less() -> None:
    simulation = Simulation(slots=1000)
    simulation.run(10)
    simulation._gap = 1 / 100
    simulation.run(60)
    assert 150 <= simulation.most(since=simulation.now - 1) <= 300


def test_a_pause_of_the_looks_is_no_pause_of_the_takers() -> None:
    room = Room()
    assert room.look(0, dispatched=0, begun=5000) == LEAST, "what was before is not known"
    assert room.look(3600, dispatched=0, begun=5000 + 3600 * 1000) == 2000


def test_what_lies_there_uncounted_takes_room_until_it_is_gone() -> None:
    room = Room()
    assert room.look(0, dispatched=0, begun=0, ready=100) == LEAST - 100
    assert room.look(0.01, dispatched=10, begun=80) == LEAST - 20
    assert room.look(0.02, dispatched=10, begun=95) == LEAST - 10
    assert room.look(0.03, dispatched=10, begun=95, ready=20) == LEAST - 20


def test_a_count_that_goes_back_is_no_rate() -> None:
    """As after a failover to a standby that had not heard of everything."""
    room = Room()
    room.look(0, dispatched=0, begun=100_000)
    assert room.look(1, dispatched=0, begun=0) == LEAST
    assert room.look(2, dispatched=0, begun=1000) > LEAST
