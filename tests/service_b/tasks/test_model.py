"""Random sequences of everything that happens to tasks, on the real table and on a model of it in plain Python."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from typing_extensions import override
from uuid_utils.compat import uuid7

from service_b.tasks import cancels, claims, inserts, outcomes, sparing, starts
from service_b.tasks.inserts import NewTask, Wishes
from service_b.tasks.leases import Answer, grant
from service_b.tasks.outcomes import Applied, Change
from tests.conftest import new_database
from tests.tasks import EVERY_TASK, end_used_up, expire, internal_time, promote_stranded

DEVICES = ["DEVICE1", "DEVICE2", "DEVICE3"]
DEADLINE_SECONDS = 1000
MAX_ATTEMPTS = 2


@dataclass
class Modelled:
    """A task as it should be. Times are seconds of the model's clock, which only the rule `pass_time` moves."""

    id: UUID
    device: str
    deadline: float
    # When it takes its place in the line of its device; None as soon as it has.
    start: float | None = None
    active: bool = False
    due: float | None = None
    attempt: int = 0
    lease: UUID | None = None
    running: bool = False
    # What service A had answered when the last call began.
    answers_before: int = 0
    chances: int | None = None
    unknowns: int = 0
    losts: int = 0
    cancel_requested: bool = False
    code: int | None = None
    # What ended it, if that was no outcome.
    ended_by: str | None = None


class TaskMachine(RuleBasedStateMachine):
    """The rules are what the processes do; the invariants are the design's promises."""

    pool: ClassVar[asyncpg.Pool]
    somebody: ClassVar[asyncpg.Connection]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Modelled] = []
        self.clock = 0.0
        self.final: dict[UUID, int] = {}
        self.held: Modelled | None = None
        """The task whose row somebody else holds."""
        self.left_out: set[str] = set()
        """Devices whose next task was held when its turn came."""
        self.answers = 0
        self.run("TRUNCATE task, finished RESTART IDENTITY")
        self.run("UPDATE service_a SET answers = 0")

    def run(self, statement: str) -> list[asyncpg.Record]:
        return list(self.runner.run(self.pool.fetch(statement)))

    def pending(self, device: str) -> list[Modelled]:
        return [task for task in self.tasks if task.device == device and task.code is None]

    def promote(self, device: str) -> None:
        waiting = [task for task in self.pending(device) if task.start is None]
        if not waiting or any(task.active for task in waiting):
            return
        if waiting[0] is self.held:
            self.left_out.add(device)
            return
        waiting[0].active, waiting[0].due = True, self.clock
        self.left_out.discard(device)

    def finish(self, task: Modelled, code: int, ended_by: str | None = None) -> None:
        task.active, task.due, task.running, task.code, task.ended_by = False, None, False, code, ended_by
        task.start = None
        self.promote(task.device)

    def dispatched(self) -> list[Modelled]:
        return [task for task in self.tasks if task.active and task.due is None and not task.running]

    def running(self) -> list[Modelled]:
        return [task for task in self.tasks if task.running]

    def is_used_up(self, task: Modelled) -> bool:
        return task.chances == 0 and task.answers_before < self.answers

    @rule(
        wanted=st.lists(
            st.tuples(st.sampled_from(DEVICES), st.sampled_from([None, None, -50, 50])), min_size=1, max_size=4
        )
    )
    def insert(self, wanted: list[tuple[str, int | None]]) -> None:
        now = datetime.now(UTC)
        new = [
            NewTask(
                uuid7(), device, 1, "{}", wishes=Wishes(not_before=now + timedelta(seconds=later)) if later else None
            )
            for device, later in wanted
        ]
        self.runner.run(inserts.insert(self.pool, new, grace_seconds=1, deadline_seconds=DEADLINE_SECONDS))
        made = []
        for task, (_, later) in zip(new, wanted, strict=True):
            start = self.clock + later if later and later > 0 else None
            made.append(Modelled(task.id, task.equipment_id, (start or self.clock) + DEADLINE_SECONDS, start))
        # What is due at once is stored before the rest of its batch.
        busy = {task.device for task in self.tasks if task.code is None and task.start is None}
        firsts = {task.device: task for task in reversed(made) if task.start is None and task.device not in busy}
        self.tasks += sorted(made, key=lambda task: task not in firsts.values())
        for device, _ in wanted:
            self.promote(device)

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        claimed = self.runner.run(claims.claim(self.pool, limit))
        ready = sorted(
            (
                task
                for task in self.tasks
                if task.due is not None and task.due <= self.clock < task.deadline and task is not self.held
                if not self.is_used_up(task)
            ),
            key=lambda task: task.due or 0,
        )
        assert len(claimed) == min(limit, len(ready))
        latest = ready[len(claimed) - 1].due or 0 if claimed else 0
        for dispatch in claimed:
            (task,) = (task for task in ready if task.id == dispatch.id)
            assert (task.due or 0) <= latest, "the longest due come first"
            if task.chances is not None and task.answers_before < self.answers:
                task.unknowns += 1
            task.due, task.attempt, task.lease, task.chances = None, task.attempt + 1, None, None
            assert dispatch.attempt == task.attempt

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), leases=st.lists(st.sampled_from([UUID(int=1), UUID(int=2)]), min_size=1, max_size=3))
    def begin(self, data: st.DataObject, leases: list[UUID]) -> None:
        """A message and its copies, or one of an earlier attempt, or of a task that has ended."""
        task = data.draw(st.sampled_from(self.tasks))
        attempt = max(1, task.attempt - data.draw(st.integers(0, 1)))
        for lease, answer in zip(
            leases, self.runner.run(grant(self.pool, [(task.id, attempt, lease) for lease in leases])), strict=True
        ):
            if task is self.held:
                assert answer is Answer.HELD
                continue
            if task.active and attempt == task.attempt and task.lease is None and self.clock < task.deadline:
                task.lease, task.running, task.due, task.answers_before = lease, True, None, self.answers
            wanted = task.running and attempt == task.attempt and task.lease == lease
            assert (answer is Answer.GRANTED) == wanted

    @rule()
    def answer_somebody(self) -> None:
        assert self.runner.run(sparing.note(self.pool, answered=True, silent_ends=0))
        self.answers += 1

    def apply(self, task: Modelled, change: Change) -> None:
        counts = (
            task.code is None
            and task.active
            and change.attempt == task.attempt
            and change.lease == task.lease
            and (change.code is not None or task.due is None)
        )
        applied = self.runner.run(self.ask_to_apply(change))
        assert applied.held == ({change.key} if task is self.held else set())
        assert bool(applied.counted) == (counts and task is not self.held)
        if not applied.counted:
            return
        code = change.code
        if change.lost:
            change = replace(change, backoff_seconds=change.backoff_seconds * 2**task.losts)
            task.losts += 1
            code = 500 if task.losts == outcomes.MAX_LOSTS else None
        assert applied.counted[change.key].code == code
        if code is not None:
            self.finish(task, code)
            return
        hold, backoff = self.clock + change.hold_seconds, self.clock + change.backoff_seconds
        task.due, task.running = max(hold, min(backoff, task.deadline)), False
        task.chances = max(0, MAX_ATTEMPTS - task.unknowns - 1) if change.unknown else None

    async def ask_to_apply(self, change: Change) -> Applied:
        async with self.pool.acquire() as connection:
            return await outcomes.apply(connection, [change], max_attempts=MAX_ATTEMPTS)

    @rule()
    def start(self) -> None:
        """Some begin at a time of their own, which has come."""
        ready = [task for task in self.tasks if task.start is not None and task.start <= self.clock]
        ready = [task for task in ready if task is not self.held]
        assert self.runner.run(self.ask_to_start()) == len(ready)
        for task in ready:
            task.start = None
        for task in ready:
            self.promote(task.device)

    async def ask_to_start(self) -> int:
        return await starts.start(self.pool, await internal_time(self.pool), 1000)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        if task.code is not None:
            expected = "ended"
        elif task is self.held:
            expected = "held"
        elif task.lease is not None:
            expected = "requested"
            task.cancel_requested, task.deadline = True, min(task.deadline, self.clock)
        else:
            expected = "cancelled"
            self.finish(task, 500, "cancel")
        assert self.runner.run(self.ask_to_cancel(task.id)) == [expected]

    async def ask_to_cancel(self, id_: UUID) -> list[cancels.Answer]:
        async with self.pool.acquire() as connection:
            return await cancels.cancel(connection, [(id_, None)])

    @precondition(lambda self: self.held is None and any(task.code is None for task in self.tasks))
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        """Somebody begins a transaction, and does not end it."""
        self.held = data.draw(st.sampled_from([task for task in self.tasks if task.code is None]))
        self.runner.run(self.somebody.execute("BEGIN"))
        self.runner.run(self.somebody.execute("UPDATE task SET reason = 'held' WHERE id = $1", self.held.id))

    @precondition(lambda self: self.held is not None)
    @rule()
    def let_go(self) -> None:
        self.held = None
        self.runner.run(self.somebody.execute("ROLLBACK"))

    @override
    def teardown(self) -> None:
        if self.held:
            self.let_go()

    @precondition(lambda self: self.running())
    @rule(data=st.data(), code=st.sampled_from([200, 404, 500]))
    def end(self, data: st.DataObject, code: int) -> None:
        task = data.draw(st.sampled_from(self.running()))
        self.apply(task, Change(task.id, task.attempt, task.lease, code, None))

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(),
        hold=st.sampled_from([0, 50]),
        backoff=st.sampled_from([0, 20, 5000]),
        kind=st.sampled_from(["unavailable", "unknown", "lost"]),
    )
    def retry(self, data: st.DataObject, hold: float, backoff: float, kind: str) -> None:
        task = data.draw(st.sampled_from(self.running()))
        self.apply(
            task,
            Change(
                task.id,
                task.attempt,
                task.lease,
                None,
                "again",
                hold,
                backoff,
                unknown=kind == "unknown",
                lost=kind == "lost",
            ),
        )

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), code=st.sampled_from([None, 200, 500]), behind=st.integers(0, 2))
    def say_something_late(self, data: st.DataObject, code: int | None, behind: int) -> None:
        """An outcome repeated, of an earlier attempt, or for a task that is due again."""
        task = data.draw(st.sampled_from(self.tasks))
        if attempt := max(0, task.attempt - behind):
            lease = data.draw(st.sampled_from([UUID(int=1), UUID(int=2)]))
            self.apply(task, Change(task.id, attempt, lease, code, "late", hold_seconds=50))

    @rule()
    def say_something_of_nobody(self) -> None:
        assert self.runner.run(self.ask_to_apply(Change(uuid7(), 1, uuid7(), 200, None))) == Applied({}, set())

    @precondition(lambda self: self.dispatched())
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.dispatched()))
        unsent = [(task.id, task.attempt)]
        held = self.runner.run(claims.make_due_again(self.pool, unsent))
        assert held == (unsent if task is self.held else [])
        if not held:
            task.due = self.clock

    @rule()
    def expire(self) -> None:
        while self.runner.run(expire(self.pool, 2)):
            pass
        while self.runner.run(end_used_up(self.pool, 2)):
            pass
        while ended := [
            task
            for task in self.tasks
            if task.code is None
            and task is not self.held
            and not task.running
            and (task.due is None or task.due <= self.clock)
            and (task.deadline <= self.clock or self.is_used_up(task))
        ]:
            for task in ended:
                task.active, task.due, task.start, task.code = False, None, None, 500
                if task.deadline <= self.clock:
                    task.ended_by = "cancel" if task.cancel_requested else "deadline"
            for device in {task.device for task in ended}:
                self.promote(device)

    @rule()
    def look_for_stranded(self) -> None:
        left_out = len(self.left_out)
        for device in list(self.left_out):
            self.promote(device)
        assert self.runner.run(promote_stranded(self.pool, "", 10)) == ("", left_out - len(self.left_out))

    @precondition(lambda self: self.held is None)
    @rule(seconds=st.sampled_from([10, 60, 2000]))
    def pass_time(self, seconds: int) -> None:
        shift = f"interval '{seconds} seconds'"
        self.run(
            f"""
            UPDATE task SET due_at = due_at - {shift}, deadline_at = deadline_at - {shift},
                start_at = start_at - {shift}
            """
        )
        self.clock += seconds

    @invariant()
    def table_is_as_modelled(self) -> None:
        rows = self.run(
            f"""
            SELECT every.*, now() AS now, task.unknowns, task.losts, task.chances, task.lease, finished.ended_by,
                coalesce(task.cancel_requested, finished.cancel_requested) AS cancel_requested
            FROM {EVERY_TASK} AS every LEFT JOIN task USING (id) LEFT JOIN finished USING (id) ORDER BY every.seq
            """
        )
        for device in DEVICES:
            stored = [row["id"] for row in rows if row["equipment_id"] == device]
            assert stored == [task.id for task in self.tasks if task.device == device]
        assert len(rows) == len(self.tasks)
        found = {row["id"]: row for row in rows}
        for task in self.tasks:
            row = found[task.id]
            seen = (row["equipment_id"], row["active"], row["attempt"], row["code"])
            assert seen == (task.device, task.active, task.attempt, task.code)
            if task.code is None:
                call = (row["unknowns"], row["losts"], row["chances"], row["lease"], row["state"] == "running")
                assert call == (task.unknowns, task.losts, task.chances, task.lease, task.running)
            assert (row["cancel_requested"], row["ended_by"]) == (task.cancel_requested, task.ended_by)
            assert (row["state"] == "scheduled") == (task.start is not None)
            assert (row["due_at"] is None) == (task.due is None)
            if task.due is not None:
                # The model's clock stands still while the real one runs: due times agree but for that.
                drift = (row["due_at"] - row["now"]) - timedelta(seconds=task.due - self.clock)
                assert abs(drift) < timedelta(seconds=9)
            if task.code is not None:
                assert row["state"] == ("success" if task.code == 200 else "error")

    @invariant()
    def a_final_status_stays(self) -> None:
        for task in self.tasks:
            if task.code is not None:
                assert self.final.setdefault(task.id, task.code) == task.code

    @invariant()
    def of_those_in_the_line_of_a_device_one_is_active(self) -> None:
        """It is the first, unless one that was accepted before it has started since."""
        for device in DEVICES:
            active = [task.active for task in self.pending(device) if task.start is None]
            assert active.count(True) == (bool(active) and device not in self.left_out)


@pytest.fixture
def machine(postgres_url: str, template: str) -> Iterator[type[TaskMachine]]:
    with asyncio.Runner() as runner:
        database = new_database(postgres_url, template)
        url = runner.run(database.__aenter__())

        async def pool() -> asyncpg.Pool:
            return await asyncpg.create_pool(url, min_size=1, max_size=2)

        TaskMachine.runner, TaskMachine.pool = runner, runner.run(pool())
        TaskMachine.somebody = runner.run(asyncpg.connect(url))
        yield TaskMachine
        runner.run(TaskMachine.somebody.close())
        runner.run(TaskMachine.pool.close())
        runner.run(database.__aexit__(None, None, None))


def test_the_table_behaves_as_its_model(machine: type[TaskMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
