"""What happens between a statement and its commit, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest

from service_b.database import Connection
from service_b.tasks import claims
from service_b.tasks.claims import Dispatch
from tests.conftest import eventually
from tests.tasks import A, accept, apply, claim, end_by_hand, expire, finish, is_blocked, promote_stranded, states
from tests.tasks import begin as begin_call


class SlowCommit:
    """A connection whose transactions are committed only when `go_on` is set, but for the first word after that."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.sent = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._connection.transaction():
            yield
            self.sent.set()
            await self.go_on.wait()

    async def fetch(self, *arguments: Any) -> Any:
        if self._connection.is_in_transaction() or self.sent.is_set():
            return await self._connection.fetch(*arguments)
        async with self.transaction():
            return await self._connection.fetch(*arguments)


@pytest.fixture
async def another(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def begin(
    slow: SlowCommit, question: Callable[[Connection], Awaitable[Any]], sql: asyncpg.Connection
) -> asyncio.Task[Any]:
    """Ask, and return when all is said but the commit."""
    asking: asyncio.Task[Any] = asyncio.ensure_future(question(cast(Any, slow)))
    await eventually(slow.sent.is_set)
    return asking


async def end_by_outcome(connection: Any, dispatch: Dispatch) -> None:
    await apply(connection, finish(dispatch))


async def end_by_deadline(connection: Any, dispatch: Dispatch) -> None:
    await claims.make_due_again(connection, [(dispatch.id, dispatch.attempt)])
    await expire(connection, 10)


@pytest.mark.parametrize("end", [end_by_outcome, end_by_deadline])
@pytest.mark.parametrize("last", ["the end", "the new task"])
async def test_a_task_stored_while_the_one_in_front_ends_becomes_due_whoever_commits_last(
    pool: asyncpg.Pool,
    sql: asyncpg.Connection,
    other: asyncpg.Connection,
    end: Callable[[Any, Dispatch], Awaitable[None]],
    last: str,
) -> None:
    await accept(pool, A)
    [dispatch] = await claims.claim(pool, 1)
    if end is end_by_outcome:
        await begin_call(pool, dispatch)
    else:
        await sql.execute("UPDATE task SET deadline_at = now()")
    slow = SlowCommit(other)
    if last == "the end":
        ending = await begin(slow, lambda connection: end(connection, dispatch), sql)
        [second] = await accept(pool, A)
        assert await states(sql, [second]) == ["waiting"]
        slow.go_on.set()
        await ending
    else:
        storing = await begin(slow, lambda connection: accept(connection, A), sql)
        await end(pool, dispatch)
        slow.go_on.set()
        [second] = await storing
    assert (await states(sql, [dispatch.id]))[0] in ("success", "error")
    assert await states(sql, [second]) == ["due"]
    assert await promote_stranded(pool, "", 10) == ("", 0)


async def test_of_two_tasks_stored_at_once_one_waits(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    slow = SlowCommit(other)
    storing = await begin(slow, lambda connection: accept(connection, A), sql)
    following = asyncio.create_task(accept(pool, A))
    await eventually(lambda: is_blocked(sql, following))
    slow.go_on.set()
    assert await states(sql, [*await storing, *await following]) == ["due", "waiting"]


async def test_a_promotion_gives_way_to_a_new_task_that_was_quicker(
    pool: asyncpg.Pool, sql: asyncpg.Connection, other: asyncpg.Connection, another: asyncpg.Connection
) -> None:
    """It began when the device was free, and the one that waits was not committed yet."""
    [first] = await accept(pool, A)
    [dispatch] = await claim(pool, 1)
    slow, slower = SlowCommit(other), SlowCommit(another)
    waiting = await begin(slow, lambda connection: accept(connection, A), sql)
    await apply(pool, finish(dispatch))
    quicker = await begin(slower, lambda connection: accept(connection, A), sql)
    slow.go_on.set()
    await eventually(lambda: is_blocked(sql, waiting))  # Its promotion, by the new task's place in the index.
    slower.go_on.set()
    assert await states(sql, [first, *await waiting, *await quicker]) == ["success", "waiting", "due"]


async def test_a_new_task_does_not_overtake_one_that_is_stranded(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    first, second = await accept(pool, A, A)
    await end_by_hand(sql, "id = $1", first)
    [third] = await accept(pool, A)
    assert await states(sql, [second, third]) == ["due", "waiting"]
