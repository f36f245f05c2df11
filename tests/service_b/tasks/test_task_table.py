"""The task table's statements on a real PostgreSQL."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_b.database import REFUSED_ROW, DatabaseSettings, create_pool
from service_b.tasks.table import CHANNEL, Attempt, Change, Dispatch, NewTask, Status, TaskTable
from tests.conftest import eventually
from tests.tasks import accept, finish, give_back, let_time_pass, new_task, row, states

A, B, C = "DEVICE0A", "DEVICE0B", "DEVICE0C"


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    """These tests are many, and none needs more than empty tables."""
    return emptied_database_url


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Another client of the database, for transactions that stay open."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def apply(tasks: TaskTable, *changes: Change, max_attempts: int = 3) -> dict[tuple[UUID, int], Any]:
    return dict(await tasks.apply(changes, max_attempts=max_attempts))


async def claim(tasks: TaskTable, limit: int = 100) -> dict[UUID, Dispatch]:
    return {dispatch.id: dispatch for dispatch in await tasks.claim(limit)}


async def run_device_down(tasks: TaskTable) -> list[UUID]:
    """Claim and finish until nothing is due; return the ids in the order in which they were dispatched."""
    order: list[UUID] = []
    while claimed := await tasks.claim(100):
        order += [dispatch.id for dispatch in claimed]
        await apply(tasks, *(finish(dispatch) for dispatch in claimed))
    return order


async def is_blocked(sql: asyncpg.Connection, what: asyncio.Task[Any]) -> bool:
    """Whether some statement waits for a lock; fails when the task is over instead."""
    assert not what.done(), f"not blocked: {what!r}"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(await sql.fetchval(waiting))


# --- insert


async def test_a_task_is_stored_as_it_was_given(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    parameters = '{"vlan":  534, "username":"\u00e9\\u00e9", "n": 1.10, "big": 123456789012345678901234567890}'
    task = new_task(A, timeout_seconds=14, parameters=parameters)
    await tasks.insert([task], grace_seconds=75, deadline_seconds=600)
    stored = await row(sql, task.id)
    assert (stored["state"], stored["attempt"], stored["status"]) == ("due", 0, "pending")
    assert (stored["timeout_seconds"], stored["time_limit_seconds"]) == (14, 89)
    assert stored["parameters"] == parameters
    assert 590 < stored["deadline_in"] <= 600
    [dispatch] = await tasks.claim(10)
    assert dispatch == Dispatch(task.id, 1, A, 14, 89, parameters)
    assert "123456789" not in repr(dispatch)
    assert "123456789" not in repr(task)


async def test_of_a_batch_the_first_of_each_device_is_due(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, B, A, B, A, C, B)
    assert await states(sql, ids) == ["due", "due", "waiting", "waiting", "due", "waiting"]
    assert set(await claim(tasks)) == {ids[0], ids[1], ids[4]}


async def test_a_device_is_served_in_the_order_of_acceptance(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    """Within a batch and from batch to batch, whatever the ids are."""
    new = sorted((new_task(A) for _ in range(10)), key=lambda task: task.id, reverse=True)
    await tasks.insert(new[:6], grace_seconds=0, deadline_seconds=60)
    [first] = await tasks.claim(10)
    await tasks.insert(new[6:], grace_seconds=0, deadline_seconds=60)
    await apply(tasks, finish(first))
    assert [first.id, *await run_device_down(tasks)] == [task.id for task in new]


async def test_order_of_acceptance_holds_over_concurrent_connections(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    """A task stored after another one's commit comes after it, whichever connection stored it."""
    chains: list[list[UUID]] = []

    async def chain(number: int) -> None:
        mine: list[UUID] = []
        chains.append(mine)
        for _ in range(8):
            mine += await accept(tasks, *random.sample([A, A, B, C], 3), A)

    await asyncio.gather(*(chain(number) for number in range(5)))
    devices = {found["id"]: found["equipment_id"] for found in await sql.fetch("SELECT id, equipment_id FROM task")}
    position = {id_: number for number, id_ in enumerate(await run_device_down(tasks))}
    assert len(position) == 5 * 8 * 4
    for mine in chains:
        for device in (A, B, C):
            of_device = [position[id_] for id_ in mine if devices[id_] == device]
            assert of_device == sorted(of_device)


async def test_a_task_accepted_while_its_device_is_being_freed_becomes_due(
    tasks: TaskTable, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    [first] = await accept(tasks, A)
    await tasks.claim(1)
    async with other.transaction():
        await other.execute("UPDATE task SET status = 'success', code = 200, active = false, finished_at = now()")
        accepting = asyncio.create_task(accept(tasks, A))
        await eventually(lambda: is_blocked(sql, accepting))
    assert await states(sql, [first, *await accepting]) == ["success", "due"]


async def test_a_device_is_not_freed_past_a_task_that_is_being_accepted(
    tasks: TaskTable, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await accept(tasks, A)
    [dispatch] = await tasks.claim(1)
    async with other.transaction():
        [second] = await accept(TaskTable(cast(Any, other)), A)
        finishing = asyncio.create_task(apply(tasks, finish(dispatch)))
        await eventually(lambda: is_blocked(sql, finishing))
    assert await finishing
    assert await states(sql, [dispatch.id, second]) == ["success", "due"]


async def test_a_task_that_expires_at_its_promotion_gives_way_to_the_next(
    tasks: TaskTable, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(tasks, A, A, A)
    [dispatch] = await tasks.claim(1)
    async with other.transaction():
        await other.execute("UPDATE task SET status = 'error', code = 500, finished_at = now() WHERE id = $1", ids[1])
        finishing = asyncio.create_task(apply(tasks, finish(dispatch)))
        await eventually(lambda: is_blocked(sql, finishing))
    assert await finishing
    assert await states(sql, ids) == ["success", "error", "due"]


def reversed_insert(tasks: TaskTable, _: list[Dispatch]) -> Awaitable[object]:
    return accept(tasks, C, B, A)


def reversed_apply(tasks: TaskTable, dispatches: list[Dispatch]) -> Awaitable[object]:
    return apply(tasks, *(finish(dispatch) for dispatch in dispatches))


def reversed_return(tasks: TaskTable, dispatches: list[Dispatch]) -> Awaitable[object]:
    return tasks.make_due_again([(dispatch.id, dispatch.attempt) for dispatch in dispatches])


@pytest.mark.parametrize("statement", [reversed_insert, reversed_apply, reversed_return])
async def test_rows_are_locked_in_the_order_of_the_devices(
    tasks: TaskTable,
    sql: asyncpg.Connection,
    other: asyncpg.Connection,
    statement: Callable[[TaskTable, list[Dispatch]], Awaitable[object]],
) -> None:
    """Whoever waits for the first device holds none of the later ones: so there is no deadlock."""
    await accept(tasks, A, B, C)
    dispatches = sorted(await tasks.claim(3), key=lambda dispatch: dispatch.equipment_id, reverse=True)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE equipment_id = $1 FOR UPDATE", A)
        running = asyncio.ensure_future(statement(tasks, dispatches))
        await eventually(lambda: is_blocked(sql, cast(Any, running)))
        await sql.execute("SELECT FROM task WHERE equipment_id IN ($1, $2) AND active FOR UPDATE NOWAIT", B, C)
    await running


@pytest.mark.parametrize(
    ("parameters", "serial"), [('{"a": nonsense}', A), ("{}", "short"), ("{}", "DEVICE\x00"), ("{}", "D\u00c9VICE0")]
)
async def test_a_refused_row_leaves_nothing_of_its_batch(
    tasks: TaskTable, sql: asyncpg.Connection, parameters: str, serial: str
) -> None:
    batch = [new_task(B), NewTask(uuid4(), serial, 1, parameters)]
    with pytest.raises(REFUSED_ROW):
        await tasks.insert(batch, grace_seconds=0, deadline_seconds=60)
    assert await sql.fetchval("SELECT count(*) FROM task") == 0


async def test_an_id_is_refused_the_second_time(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    task = new_task(A)
    for device in (A, B):
        again = NewTask(task.id, device, 1, "{}")
        if device == A:
            await tasks.insert([again], grace_seconds=0, deadline_seconds=60)
            continue
        with pytest.raises(REFUSED_ROW):
            await tasks.insert([again], grace_seconds=0, deadline_seconds=60)
    assert await sql.fetchval("SELECT array_agg(equipment_id) FROM task") == [A]


# --- statuses


async def test_statuses_come_in_the_order_asked_for(tasks: TaskTable) -> None:
    ids = await accept(tasks, A, B, C)
    claimed = await claim(tasks)
    await apply(tasks, finish(claimed[ids[0]]), finish(claimed[ids[1]], 404))
    asked = [ids[2], uuid4(), ids[1], ids[0], ids[1]]
    assert await tasks.statuses(asked) == [Status(C, None), None, Status(B, 404), Status(A, 200), Status(B, 404)]


# --- claim


async def test_the_longest_due_is_claimed_first(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = [id_ for device in (B, C, A) for id_ in await accept(tasks, device)]
    assert [[dispatch.id for dispatch in await tasks.claim(1)] for _ in range(4)] == [[id_] for id_ in ids] + [[]]


async def test_what_is_claimed_is_dispatched(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [id_] = await accept(tasks, A)
    assert [dispatch.attempt for dispatch in await tasks.claim(5)] == [1]
    claimed = await row(sql, id_)
    assert (claimed["state"], claimed["attempt"], claimed["due_at"]) == ("dispatched", 1, None)
    assert claimed["dispatched_at"] >= claimed["created_at"]


async def test_what_is_not_due_yet_or_past_its_deadline_is_not_claimed(
    tasks: TaskTable, sql: asyncpg.Connection
) -> None:
    ids = await accept(tasks, A, B, C)
    await sql.execute("UPDATE task SET due_at = now() + interval '1 minute' WHERE id = $1", ids[0])
    await sql.execute("UPDATE task SET deadline_at = now() WHERE id = $1", ids[1])
    assert list(await claim(tasks)) == [ids[2]]
    assert await states(sql, ids) == ["due", "due", "dispatched"]


async def test_concurrent_claims_are_disjoint(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, *(f"DEVICE{number}" for number in range(300)))
    claims = await asyncio.gather(*(tasks.claim(50) for _ in range(8)), *(tasks.claim(50) for _ in range(2)))
    claimed = [dispatch.id for dispatches in claims for dispatch in dispatches]
    claimed += [dispatch.id for dispatch in await tasks.claim(300)]
    assert sorted(claimed) == sorted(ids)
    assert await sql.fetchval("SELECT max(attempt) FROM task") == 1


async def test_a_claimer_does_not_wait_for_another(
    tasks: TaskTable, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    ids = await accept(tasks, A, B)
    async with other.transaction():
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])
        async with asyncio.timeout(30):
            assert list(await claim(tasks)) == [ids[1]]
    assert list(await claim(tasks)) == [ids[0]]


# --- apply


@pytest.mark.parametrize(("code", "status"), [(200, "success"), (404, "error"), (500, "error")])
async def test_a_final_outcome_ends_the_task_and_promotes_the_next(
    tasks: TaskTable, sql: asyncpg.Connection, code: int, status: str
) -> None:
    ids = await accept(tasks, A, A, A)
    [dispatch] = await tasks.claim(10)
    accepted = await apply(tasks, Change(dispatch.id, 1, code, "why"))
    ended = await row(sql, ids[0])
    assert accepted == {(ids[0], 1): ended["created_at"]}
    assert (ended["status"], ended["code"], ended["reason"]) == (status, code, "why")
    assert (ended["active"], ended["due_at"], ended["attempt"], ended["unknowns"]) == (False, None, 1, 0)
    assert ended["finished_at"] >= ended["dispatched_at"]
    assert await states(sql, ids) == [status, "due", "waiting"]
    assert list(await claim(tasks)) == [ids[1]]


async def test_a_batch_may_hold_all_kinds_of_outcomes(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, A, B, C, C)
    claimed = await claim(tasks)
    accepted = await apply(
        tasks,
        finish(claimed[ids[2]], 404),
        give_back(claimed[ids[0]], hold_seconds=60),
        Change(uuid4(), 1, 200, None),
        finish(claimed[ids[1]]),
    )
    assert set(accepted) == {(id_, 1) for id_ in ids[:3]}
    assert await states(sql, ids) == ["due", "success", "error", "due"]
    assert await apply(tasks) == {}


@pytest.mark.parametrize(
    ("hold", "backoff", "due_in"),
    [
        (0, 0, 0),
        (0, 100, 100),
        (100, 0, 100),
        (100, 200, 200),
        (200, 100, 200),
        (0, 900, 600),  # Patience ends at the deadline,
        (900, 0, 900),  # but a device is never taken away from service A.
        (900, 950, 900),
    ],
)
async def test_a_retry_waits_for_the_device_and_is_polite_up_to_the_deadline(
    tasks: TaskTable, sql: asyncpg.Connection, hold: float, backoff: float, due_in: float
) -> None:
    [first, second] = await accept(tasks, A, A, deadline_seconds=600)
    [dispatch] = await tasks.claim(1)
    await apply(tasks, give_back(dispatch, hold_seconds=hold, backoff_seconds=backoff))
    held = await row(sql, first)
    assert (held["state"], held["attempt"], held["unknowns"], held["reason"]) == ("due", 1, 0, "given back")
    assert due_in - 30 < held["due_in"] <= due_in
    assert await states(sql, [second]) == ["waiting"]


async def test_a_retry_is_claimed_when_its_time_has_come(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [id_] = await accept(tasks, A)
    [dispatch] = await tasks.claim(1)
    await apply(tasks, give_back(dispatch, hold_seconds=100, backoff_seconds=50))
    await let_time_pass(sql, 60)
    assert await tasks.claim(1) == []
    await let_time_pass(sql, 41)
    assert [(dispatch.id, dispatch.attempt) for dispatch in await tasks.claim(1)] == [(id_, 2)]


async def test_unknown_attempts_are_counted_and_draw_the_deadline_when_used_up(
    tasks: TaskTable, sql: asyncpg.Connection
) -> None:
    [first, second] = await accept(tasks, A, A, deadline_seconds=9000)
    for attempt in (1, 2, 3):
        [dispatch] = await tasks.claim(1)
        assert dispatch.attempt == attempt
        await apply(tasks, give_back(dispatch, hold_seconds=100, unknown=True))
        held = await row(sql, first)
        assert (held["state"], held["unknowns"]) == ("due", attempt)
        assert 70 < held["due_in"] <= 100
        assert await tasks.expire(10) == []
        if attempt < 3:
            assert held["deadline_in"] > 8000
        else:
            assert held["deadline_at"] == held["due_at"]
        await let_time_pass(sql, 101)
    assert await tasks.claim(1) == []
    assert await tasks.expire(10) == [first]
    ended = await row(sql, first)
    assert (ended["status"], ended["code"], ended["reason"]) == ("error", 500, "given back")
    assert await states(sql, [second]) == ["due"]


async def test_other_retries_use_no_attempts_up(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [id_] = await accept(tasks, A)
    for attempt in range(1, 8):
        [dispatch] = await tasks.claim(1)
        assert dispatch.attempt == attempt
        await apply(tasks, give_back(dispatch))
    assert (await row(sql, id_))["unknowns"] == 0
    assert await tasks.expire(10) == []


async def test_a_drawn_deadline_is_never_put_off(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [id_] = await accept(tasks, A, deadline_seconds=50)
    [dispatch] = await tasks.claim(1)
    await apply(tasks, give_back(dispatch, hold_seconds=500, unknown=True), max_attempts=1)
    held = await row(sql, id_)
    assert held["deadline_in"] <= 50
    assert held["due_in"] > 400
    await let_time_pass(sql, 100)
    assert await tasks.expire(10) == [], "service A may still be at work"
    await let_time_pass(sql, 401)
    assert await tasks.expire(10) == [id_]


async def snapshot(sql: asyncpg.Connection) -> list[tuple[Any, ...]]:
    return [tuple(found) for found in await sql.fetch("SELECT task, xmin::text FROM task ORDER BY seq")]


async def test_late_repeated_and_unheard_of_outcomes_change_nothing(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, A, B, C, A)
    first = await claim(tasks)
    await apply(tasks, finish(first[ids[0]]), give_back(first[ids[1]]), give_back(first[ids[2]]))
    second = await claim(tasks)
    assert set(second) == {ids[1], ids[2], ids[3]}
    await apply(tasks, give_back(second[ids[2]], hold_seconds=60))
    before = await snapshot(sql)
    for change in (
        finish(first[ids[0]]),  # repeated
        finish(first[ids[0]], 500),  # another one for a finished task
        give_back(first[ids[0]]),
        Change(ids[0], 2, 200, None),  # of an attempt that never was
        finish(first[ids[1]]),  # late: its second attempt is on its way
        give_back(first[ids[1]], unknown=True),
        finish(first[ids[2]]),  # late: its second attempt is over
        give_back(second[ids[2]], unknown=True),  # repeated: due already
        Change(ids[3], 0, 200, None),
        Change(uuid4(), 1, 200, None),
        Change(uuid4(), 1, None, None),
    ):
        assert await apply(tasks, change) == {}
    assert await snapshot(sql) == before


async def test_a_final_answer_counts_though_its_task_is_due_again(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    """A process died, its call's outcome was reported as interrupted, and the answer came after all."""
    [first, second] = await accept(tasks, A, A)
    [dispatch] = await tasks.claim(1)
    await apply(tasks, give_back(dispatch, hold_seconds=60))
    assert set(await apply(tasks, finish(dispatch))) == {(first, 1)}
    assert await states(sql, [first, second]) == ["success", "due"]
    assert (await row(sql, first))["due_at"] is None


async def test_of_two_attempts_in_one_batch_the_newest_counts(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [id_] = await accept(tasks, A)
    [first] = await tasks.claim(1)
    await apply(tasks, give_back(first))
    [second] = await tasks.claim(1)
    assert set(await apply(tasks, finish(first, 500), finish(second))) == {(id_, 2)}
    assert (await row(sql, id_))["code"] == 200


@pytest.mark.parametrize(
    "change",
    [
        Change(UUID(int=0), 1, 200, "a NUL \x00"),
        Change(UUID(int=0), 1, 201, None),
        Change(UUID(int=0), 1, 99999, None),
        Change(UUID(int=0), 2**40, 200, None),
    ],
)
async def test_a_refused_outcome_changes_nothing(tasks: TaskTable, sql: asyncpg.Connection, change: Change) -> None:
    ids = await accept(tasks, A, B)
    claimed = await claim(tasks)
    bad = Change(ids[0], change.attempt, change.code, change.reason)
    with pytest.raises(REFUSED_ROW):
        await apply(tasks, finish(claimed[ids[1]]), bad)
    assert await states(sql, ids) == ["dispatched", "dispatched"]


# --- NOTIFY


async def test_what_becomes_due_is_notified_at_once_and_what_is_held_is_not(
    tasks: TaskTable, sql: asyncpg.Connection
) -> None:
    heard: list[str] = []
    await sql.add_listener(CHANNEL, lambda *arguments: heard.append(str(arguments[2])))

    async def notifications(awaitable: Awaitable[object]) -> int:
        heard.clear()
        await awaitable
        await sql.execute("SELECT 1")  # What was sent before comes with the answer, at the latest.
        return len(heard)

    assert await notifications(accept(tasks, A, A, A, B)) == 0
    claimed = list((await claim(tasks)).values())
    of_a, of_b = sorted(claimed, key=lambda dispatch: dispatch.equipment_id)
    assert await notifications(apply(tasks, give_back(of_b, hold_seconds=60))) == 0
    assert await notifications(apply(tasks, finish(of_b))) == 0
    assert await notifications(apply(tasks, give_back(of_a))) == 1
    [of_a] = await tasks.claim(1)
    assert await notifications(apply(tasks, finish(of_a))) == 1
    assert await notifications(apply(tasks, finish(of_a))) == 0
    await accept(tasks, C, C)
    await sql.execute("UPDATE task SET deadline_at = now() WHERE equipment_id = $1 AND active", C)
    assert await notifications(tasks.expire(10)) == 1


# --- make_due_again


async def test_a_dispatch_that_was_not_sent_is_due_again_at_once(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, A, B, C, A)
    first = await claim(tasks)
    await apply(tasks, finish(first[ids[1]]), give_back(first[ids[2]], hold_seconds=60))
    before = await row(sql, ids[2])
    await tasks.make_due_again([*((id_, 1) for id_ in ids), (uuid4(), 1), (ids[0], 2), (ids[0], 0)])
    assert await states(sql, ids) == ["due", "success", "due", "waiting"]
    assert (await row(sql, ids[2]))["due_at"] == before["due_at"], "it was due already, but later"
    assert [(dispatch.id, dispatch.attempt) for dispatch in await tasks.claim(9)] == [(ids[0], 2)]
    await tasks.make_due_again([(ids[0], 1)])
    assert await states(sql, ids[:1]) == ["dispatched"], "taken back for an earlier attempt"
    await tasks.make_due_again([])


# --- expire


async def test_tasks_past_their_deadline_end_unless_service_a_may_be_at_work(
    tasks: TaskTable, sql: asyncpg.Connection
) -> None:
    ids = await accept(tasks, A, A, B, C, "DEVICE0D", deadline_seconds=60)
    claimed = await claim(tasks)
    await apply(tasks, give_back(claimed[ids[2]], hold_seconds=300), give_back(claimed[ids[3]]))
    [young] = await accept(tasks, C, deadline_seconds=3600)
    await tasks.make_due_again([(ids[4], 1)])
    assert await tasks.expire(10) == []
    await let_time_pass(sql, 100)
    # Dispatched, waiting, held, due, taken back; and the one behind the fourth.
    assert set(await tasks.expire(10)) == {ids[1], ids[3], ids[4]}
    assert await states(sql, [*ids, young]) == ["dispatched", "error", "due", "error", "error", "due"]
    reasons = [(await row(sql, id_))["reason"] for id_ in (ids[1], ids[3], ids[4])]
    assert reasons == ["deadline passed", "given back", "deadline passed"]
    assert (await row(sql, ids[1]))["code"] == 500
    assert await tasks.expire(10) == []
    assert list(await claim(tasks)) == [young]
    await let_time_pass(sql, 201)
    assert await tasks.expire(10) == [ids[2]]
    assert set(await apply(tasks, finish(claimed[ids[0]]))) == {(ids[0], 1)}, "an answer past the deadline counts"


async def test_expiry_takes_the_oldest_first_and_no_more_than_asked(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = [
        (await accept(tasks, device, deadline_seconds=deadline))[0] for device, deadline in ((A, 30), (B, 10), (C, 20))
    ]
    await let_time_pass(sql, 40)
    assert [await tasks.expire(1) for _ in range(4)] == [[ids[1]], [ids[2]], [ids[0]], []]


async def test_a_whole_expired_queue_ends(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    ids = await accept(tasks, *[A] * 20, deadline_seconds=10)
    await let_time_pass(sql, 11)
    ended: list[UUID] = []
    while expired := await tasks.expire(3):
        ended += expired
    assert sorted(ended) == sorted(ids)


async def test_expiry_leaves_alone_what_somebody_else_is_changing(
    tasks: TaskTable, other: asyncpg.Connection, sql: asyncpg.Connection
) -> None:
    ids = await accept(tasks, A, B, deadline_seconds=10)
    await let_time_pass(sql, 11)
    async with other.transaction(), asyncio.timeout(30):
        await other.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])
        assert await tasks.expire(10) == [ids[1]]
    assert await tasks.expire(10) == [ids[0]]


# --- promote_stranded


async def strand(sql: asyncpg.Connection, *devices: str) -> None:
    """What an operator's own SQL may do: end a task and promote nothing."""
    await sql.execute(
        """
        UPDATE task SET status = 'error', code = 500, active = false, due_at = NULL, finished_at = now()
        WHERE active AND equipment_id = ANY($1::text[])
        """,
        devices,
    )


async def test_stranded_tasks_are_promoted_round_and_round(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    devices = ["DEVICE0a", *(f"DEVICE{number}" for number in range(10, 17)), "aDEVICE"]
    first = await accept(tasks, *devices)
    second, third = await accept(tasks, *devices), await accept(tasks, *devices)
    assert await tasks.promote_stranded("", 100) == ("", 0)
    stranded = [devices[0], devices[2], devices[8]]
    await strand(sql, *stranded)
    after, found = "", 0
    rounds: list[str] = []
    while not rounds or after:
        after, promoted = await tasks.promote_stranded(after, 4)
        rounds.append(after)
        found += promoted
    assert rounds == [sorted(devices)[3], sorted(devices)[7], ""]
    assert found == 3
    expected = ["due" if device in stranded else "waiting" for device in devices]
    assert await states(sql, second) == expected
    assert await states(sql, third) == ["waiting"] * 9
    assert (await states(sql, first)).count("due") == 6
    assert await tasks.promote_stranded("", 100) == ("", 0)


async def test_with_nothing_waiting_nothing_is_stranded(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    await accept(tasks, A)
    await strand(sql, A)
    assert await tasks.promote_stranded("", 10) == ("", 0)
    assert await tasks.promote_stranded("zzz", 10) == ("", 0)


async def test_a_stranded_task_gives_way_to_a_newer_one_that_was_quicker(
    tasks: TaskTable, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await accept(tasks, A, A)
    await strand(sql, A)
    async with other.transaction():
        await accept(TaskTable(cast(Any, other)), A)
        promoting = asyncio.create_task(tasks.promote_stranded("", 10))
        await eventually(lambda: is_blocked(sql, promoting))
    with pytest.raises(asyncpg.UniqueViolationError):
        await promoting
    assert await tasks.promote_stranded("", 10) == ("", 0)


# --- what the reconciler asks


async def test_the_newest_dispatched_is_the_one_claimed_last_without_an_outcome(tasks: TaskTable) -> None:
    assert await tasks.newest_dispatched() is None
    await accept(tasks, A, B)
    [first] = await tasks.claim(1)
    [second] = await tasks.claim(1)
    newest = await tasks.newest_dispatched()
    assert newest
    assert (newest.id, newest.attempt, newest.time_limit_seconds) == (second.id, 1, 1)
    await apply(tasks, give_back(second))
    newest = await tasks.newest_dispatched()
    assert newest
    assert newest.id == first.id


async def test_only_an_answer_of_service_a_shows_that_an_attempt_was_taken(
    tasks: TaskTable, sql: asyncpg.Connection
) -> None:
    await accept(tasks, A, B, C, "DEVICE0D")
    dispatches: list[Dispatch] = []
    attempts: list[Attempt] = []
    for _ in range(4):
        dispatches += await tasks.claim(1)
        newest = await tasks.newest_dispatched()
        assert newest
        attempts.append(newest)
    assert await tasks.answered(attempts) is None
    await apply(tasks, finish(dispatches[3], 500), give_back(dispatches[2]))
    assert await tasks.answered(attempts) is None
    await apply(tasks, finish(dispatches[0]))
    assert await tasks.answered(attempts) == attempts[0].dispatched_at
    await apply(tasks, finish(dispatches[1], 404))
    assert await tasks.answered(attempts) == attempts[1].dispatched_at
    assert await tasks.answered(attempts[2:]) is None
    stale = [Attempt(attempts[1].id, 2, attempts[1].dispatched_at, 1)]
    assert await tasks.answered(stale) is None
    assert await tasks.answered([]) is None


async def test_attempts_without_outcome_are_listed_after_their_time(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    [short] = await accept(tasks, A, timeout_seconds=10, grace_seconds=5)
    [first] = await tasks.claim(1)
    [long] = await accept(tasks, B, timeout_seconds=100, grace_seconds=5)
    await tasks.claim(1)
    now = await tasks.now()

    async def listed(lateness: float = 0, limit: int = 10) -> list[UUID]:
        return [attempt.id for attempt in await tasks.without_outcome(await tasks.now(), lateness, limit)]

    assert await listed() == []
    await let_time_pass(sql, 16)
    assert await listed() == [short]
    assert await listed(lateness=60) == []
    await let_time_pass(sql, 100)
    assert await listed() == [short, long]
    assert await listed(limit=1) == [short]
    dispatched_at = (await row(sql, long))["dispatched_at"]
    assert [attempt.id for attempt in await tasks.without_outcome(dispatched_at, 0, 10)] == [short]
    assert abs((now - dispatched_at).total_seconds() - 116) < 60
    await apply(tasks, give_back(first))
    assert await listed() == [long]


async def test_the_backlog_is_counted_by_state(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    empty = await tasks.backlog()
    assert (empty.waiting, empty.due, empty.dispatched, empty.oldest_seconds) == (0, 0, 0, 0)
    await accept(tasks, A, A, A, B, C)
    await tasks.claim(1)
    await let_time_pass(sql, 100)
    backlog = await tasks.backlog()
    assert (backlog.waiting, backlog.due, backlog.dispatched) == (2, 2, 1)
    assert 100 <= backlog.oldest_seconds < 160
    await accept(tasks, "DEVICE0D")
    assert (await tasks.backlog()).oldest_seconds >= 100


async def test_the_table_says_what_is_missing(tasks: TaskTable, sql: asyncpg.Connection) -> None:
    assert await tasks.missing() is None
    await sql.execute("ALTER TABLE task RENAME TO elsewhere")
    assert await tasks.missing() == "database: not migrated"
    await sql.execute("ALTER TABLE elsewhere RENAME TO task")
    assert await tasks.missing() is None


# --- many at once


async def test_under_concurrent_load_every_task_ends_one_at_a_time_and_in_order(
    database_url: str, database: DatabaseSettings, sql: asyncpg.Connection
) -> None:
    """Inserts, outcomes, returns, expiry and promotion on few devices: no deadlock, nothing stranded, nothing lost."""
    devices = [f"DEVICE{number}" for number in range(6)]
    chance = random.Random(7776)
    working: Counter[str] = Counter()
    served: defaultdict[str, list[UUID]] = defaultdict(list)
    inserting = True

    async with create_pool(database.model_copy(update={"pool_size": 14})) as pool:
        tasks = TaskTable(pool)

        async def accept_many() -> int:
            total = 0
            for _ in range(25):
                batch = chance.choices(devices, k=chance.randint(1, 12))
                await accept(tasks, *batch, deadline_seconds=3600)
                total += len(batch)
            return total

        async def work() -> None:
            while inserting or await sql_pending():
                claimed = await tasks.claim(chance.randint(1, 5))
                changes = []
                for dispatch in claimed:
                    working[dispatch.equipment_id] += 1
                    assert working[dispatch.equipment_id] == 1, "two at once"
                await asyncio.sleep(0)
                unsent = []
                for dispatch in claimed:
                    working[dispatch.equipment_id] -= 1
                    match chance.random():
                        case dice if dice < 0.1:
                            unsent.append((dispatch.id, dispatch.attempt))
                        case dice if dice < 0.2:
                            changes.append(give_back(dispatch))
                        case _:
                            served[dispatch.equipment_id].append(dispatch.id)
                            changes += [finish(dispatch), Change(uuid4(), 1, 200, None)]
                chance.shuffle(changes)
                if unsent:
                    await tasks.make_due_again(unsent)
                if changes:
                    await apply(tasks, *changes)
                    await apply(tasks, *changes)

        async def sql_pending() -> bool:
            return bool(await pool.fetchval("SELECT EXISTS (SELECT FROM task WHERE status = 'pending')"))

        async def expire() -> None:
            while inserting or await sql_pending():
                # Some run out of time while they wait.
                await pool.execute(
                    "UPDATE task SET deadline_at = now() WHERE id IN (SELECT id FROM task"
                    " WHERE status = 'pending' AND NOT active ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)"
                )
                await tasks.expire(5)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(90):
            others = [*(asyncio.create_task(work()) for _ in range(5)), asyncio.create_task(expire())]
            totals = await asyncio.gather(*(accept_many() for _ in range(6)))
            inserting = False
            await asyncio.gather(*others)
        assert await tasks.promote_stranded("", 100) == ("", 0)

    ended = await sql.fetch("SELECT id, equipment_id, status, code FROM task ORDER BY seq")
    assert len(ended) == sum(totals)
    assert {found["status"] for found in ended} == {"success", "error"}
    for device in devices:
        succeeded = [found["id"] for found in ended if found["equipment_id"] == device and found["code"] == 200]
        assert served[device] == succeeded


# --- the cost


@pytest.fixture
async def one_connection(database: DatabaseSettings) -> AsyncIterator[asyncpg.Pool]:
    """A pool of one: what it read can be counted, and its statements' generic plans come into play."""
    async with create_pool(database.model_copy(update={"pool_size": 1})) as pool:
        yield pool


async def rows_read(pool: asyncpg.Pool, sql: asyncpg.Connection) -> int:
    """How many rows of the table were read so far, by whatever plan."""
    await pool.execute("SELECT pg_stat_force_next_flush()")
    await pool.execute("SELECT 1")
    read: int = await sql.fetchval(
        """
        SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
                                                            WHERE relname = 'task')::bigint
        FROM pg_stat_user_tables WHERE relname = 'task'
        """
    )
    return read


async def test_no_statement_of_the_busy_path_reads_the_backlog(
    one_connection: asyncpg.Pool, sql: asyncpg.Connection
) -> None:
    """100,000 due, 10,000 waiting for one device, 5,000 finished: each statement reads a few times what it returns."""
    await sql.execute(
        """
        INSERT INTO task (id, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, active,
                          due_at, status, code, finished_at, attempt, dispatched_at)
        SELECT gen_random_uuid(), CASE WHEN n <= 100000 THEN 'DEVICE' || n WHEN n <= 110000 THEN 'DEVICE1'
               ELSE 'DEVICE' || n END,
               1, '{"username": "admin", "password": "admin"}', 1, now() + interval '1 day', n <= 100000,
               CASE WHEN n <= 100000 THEN now() - interval '1 hour' + n * interval '1 ms' END,
               CASE WHEN n <= 110000 THEN 'pending' ELSE 'success' END,
               CASE WHEN n > 110000 THEN 200 END, CASE WHEN n > 110000 THEN now() END,
               CASE WHEN n > 110000 THEN 1 ELSE 0 END, CASE WHEN n > 110000 THEN now() END
        FROM generate_series(1, 115000) AS n
        """
    )
    await sql.execute("VACUUM ANALYZE task")
    tasks = TaskTable(one_connection)
    batch = 20

    async def cost(awaitable: Awaitable[Any]) -> tuple[Any, int]:
        before = await rows_read(one_connection, sql)
        return await awaitable, await rows_read(one_connection, sql) - before

    costs: defaultdict[str, list[int]] = defaultdict(list)
    for round_ in range(8):  # From the sixth on PostgreSQL may choose a generic plan.
        dispatches, costs["claim"][round_:] = await _listed(cost(tasks.claim(batch)))
        assert len(dispatches) == batch
        _, costs["newest_dispatched"][round_:] = await _listed(cost(tasks.newest_dispatched()))
        _, costs["without_outcome"][round_:] = await _listed(cost(tasks.without_outcome(await tasks.now(), 60, batch)))
        attempts = [(dispatch.id, dispatch.attempt) for dispatch in dispatches]
        _, costs["answered"][round_:] = await _listed(
            cost(tasks.answered([Attempt(id_, attempt, await tasks.now(), 1) for id_, attempt in attempts]))
        )
        _, costs["make_due_again"][round_:] = await _listed(cost(tasks.make_due_again(attempts[:3])))
        # In the first round DEVICE1 is among them, with ten thousand tasks behind it.
        _, costs["apply"][round_:] = await _listed(cost(apply(tasks, *(finish(dispatch) for dispatch in dispatches))))
        await sql.execute(
            "UPDATE task SET deadline_at = now() WHERE equipment_id = $1 AND active", f"DEVICE{9000 + round_}"
        )
        expired, costs["expire"][round_:] = await _listed(cost(tasks.expire(batch)))
        assert len(expired) == 1
        _, costs["promote_stranded"][round_:] = await _listed(cost(tasks.promote_stranded("", batch)))
        _, costs["insert"][round_:] = await _listed(
            cost(accept(tasks, "DEVICE1", *(f"DEVICE{n}" for n in range(5000, 5019))))
        )
        _, costs["statuses"][round_:] = await _listed(cost(tasks.statuses([dispatch.id for dispatch in dispatches])))
    assert {name: max(reads) for name, reads in costs.items() if max(reads) > 30 * batch} == {}


async def _listed(awaitable: Awaitable[tuple[Any, int]]) -> tuple[Any, list[int]]:
    result, reads = await awaitable
    return result, [reads]
