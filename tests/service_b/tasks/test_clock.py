"""Internal time: the estimate in simulated time, and its correction on a real PostgreSQL."""

import random
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from service_b.tasks import clock
from service_b.tasks.clock import PATIENCE_SECONDS, Clock, Jump
from service_b.tasks.states import NOW
from tests.tasks import step_clock

HOUR = 3600.0
JUMPS = (HOUR, -HOUR, 40.0, -40.0)


class World:
    """A monotonic clock, the database's clock, and a process that looks at both once a second."""

    def __init__(self, settle_seconds: float = 0) -> None:
        self.monotonic = 1000.0
        self.seen = 1_800_000_000.0
        # How much faster the database's clock runs.
        self.drift = 0.0
        self.clock = Clock(lambda: self.monotonic, settle_seconds=settle_seconds)

    def let_pass(self, seconds: float) -> None:
        self.monotonic += seconds
        self.seen += seconds * (1 + self.drift)

    def look(self, *, there: float = 0.002, back: float = 0.002) -> float:
        """Ask, and have the answer after so many seconds; return by how much the clock has jumped."""
        asked_at = self.monotonic
        self.let_pass(there)
        seen = self.seen
        self.let_pass(back)
        return self.clock.observe(seen, asked_at, self.monotonic)

    def go_on(self, seconds: int) -> list[float]:
        """Look once a second."""
        jumps = []
        for _ in range(seconds):
            self.let_pass(1)
            jumps.append(self.look(there=random.uniform(0, 0.05), back=random.uniform(0, 0.05)))
        return jumps

    @property
    def error(self) -> float:
        """How far the estimate is ahead of the database's clock."""
        now = self.clock.now()
        assert now
        return (now - datetime.fromtimestamp(self.seen, UTC)).total_seconds()


@pytest.fixture
def world() -> World:
    made = World()
    made.look()
    return made


def test_before_the_first_look_nothing_is_known() -> None:
    world = World()
    assert world.clock.now() is None
    world.look(there=30)
    assert world.clock.now() is None, "so slow an answer says too little"
    world.look()
    assert abs(world.error) < 0.01


@pytest.mark.parametrize("drift", [0.01, -0.01])
def test_a_drift_is_followed(world: World, drift: float) -> None:
    world.drift = drift
    assert set(world.go_on(1000)) == {0.0}
    assert abs(world.error) < 0.1


def test_whatever_the_database_says_internal_time_is_about_what_is_estimated(world: World) -> None:
    world.go_on(10)
    truth = datetime.fromtimestamp(world.seen, UTC)
    world.seen += HOUR
    least, most = world.clock.at_least(), world.clock.at_most()
    assert least
    assert most
    assert least < truth < most
    assert most - least < timedelta(seconds=1)


@pytest.mark.parametrize("by", JUMPS)
def test_a_jump_is_told_and_not_followed(world: World, by: float) -> None:
    world.seen += by
    for jump in world.go_on(int(PATIENCE_SECONDS) - 5):
        assert abs(jump - by) < 0.2
    assert abs(world.error + by) < 0.2


@pytest.mark.parametrize("by", JUMPS)
def test_a_jump_that_somebody_corrects_is_over(world: World, by: float) -> None:
    world.seen += by
    world.go_on(20)
    world.seen -= by
    assert set(world.go_on(100)) == {0.0}
    world.seen += by
    assert 0.0 not in world.go_on(25), "its patience begins anew"


@pytest.mark.parametrize("by", JUMPS)
def test_who_is_alone_with_its_estimate_gives_it_up(world: World, by: float) -> None:
    """As a virtual machine that was stopped together with its clocks."""
    world.seen += by
    world.go_on(int(PATIENCE_SECONDS) + 2)
    assert abs(world.error) < 0.1
    assert world.go_on(1) == [0.0]


@pytest.mark.parametrize("by", JUMPS)
def test_who_has_just_started_waits_for_those_who_know_better(by: float) -> None:
    """Its first look came between a jump and its correction."""
    world = World(settle_seconds=3)
    world.seen += by
    assert world.look() == 0
    world.seen -= by
    assert world.go_on(3) == [0, 0, 0]
    assert world.clock.now() is world.clock.at_least() is None
    most = world.clock.at_most()
    assert most
    assert abs(most.timestamp() - world.seen) < 0.5
    assert world.go_on(1) == [0]
    assert abs(world.error) < 0.2
    world.seen += by
    assert world.go_on(1) == [pytest.approx(by, abs=0.2)]


def test_a_suspension_is_no_jump(world: World) -> None:
    """The monotonic clock counts it; the answer to a look that it fell into says little."""
    world.let_pass(HOUR)
    assert world.look(there=HOUR) == 0
    assert set(world.go_on(10)) == {0.0}
    assert abs(world.error) < 0.1


def test_a_slow_answer_is_no_use(world: World) -> None:
    before = world.error
    world.seen += HOUR
    assert world.look(there=3, back=0) == 0
    assert world.look(there=0, back=3) == 0
    assert world.error == pytest.approx(before - HOUR, abs=1e-5)
    assert world.look() == pytest.approx(HOUR, abs=0.01)


# --- in the database


async def internal(sql: asyncpg.Connection) -> datetime:
    now: datetime = await sql.fetchval(f"SELECT {NOW}")
    return now


@pytest.mark.parametrize("by", JUMPS)
async def test_internal_time_goes_on_after_a_correction(sql: asyncpg.Connection, by: float) -> None:
    mine, theirs = Clock(settle_seconds=0), Clock(settle_seconds=0)
    assert await mine.look(sql) is None
    assert await theirs.look(sql) is None
    before = await internal(sql)
    await step_clock(sql, by)
    jumps = [await mine.look(sql), await theirs.look(sql)]
    assert [await clock.correct(sql, jump) for jump in jumps if jump] == [True, False], "once"
    for each in (mine, theirs):
        assert await each.look(sql) is None
        now = each.now()
        assert now
        assert abs(now - before) < timedelta(seconds=30)
    assert abs(await internal(sql) - before) < timedelta(seconds=30)


async def test_a_held_row_is_not_waited_for(sql: asyncpg.Connection, other: asyncpg.Connection) -> None:
    jump = Jump(timedelta(seconds=40), timedelta(0))
    async with other.transaction():
        await other.execute("SELECT FROM task_clock FOR UPDATE")
        assert not await clock.correct(sql, jump)
    assert await clock.correct(sql, jump)
