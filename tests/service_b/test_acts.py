"""What clients do to tasks that are there, on a real PostgreSQL."""

import asyncio
import json
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from messaging.sealing.opener import Opener, OpenError
from service_b.acts import Acts, Answer
from service_b.database import DatabaseSettings
from service_b.settings import Settings
from service_b.storage import StorageUnavailableError
from service_b.submission import Submission
from service_b.tasks import claims
from service_b.tasks.clock import Clock
from tests.queues import metric
from tests.seals import IDEMPOTENCY_SECRET, make_keys
from tests.tasks import A, B, accept, apply, begin, claim, end_by_hand, finish

PARAMETERS = '{"username":"admin","password":"hunter2-Secret","interfaces":[]}'


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


async def test_many_cancel_at_once_and_each_is_told_what_became_of_its_own(pool: asyncpg.Pool) -> None:
    ids = await accept(pool, *[f"DEVICE{n:03}" for n in range(50)])
    [running] = await claim(pool, 1)
    before = metric("tasks_cancelled_total")
    acts = Acts(pool, Clock())
    answers = await asyncio.gather(*(acts.cancel(id_) for id_ in [*ids, uuid4()]))
    assert [answer for id_, answer in zip(ids, answers, strict=False) if id_ == running.id] == ["requested"]
    assert (answers.count(Answer.CANCELLED), answers[-1]) == (49, "ended")
    assert metric("tasks_cancelled_total") == before + 49
    await acts.close()


async def test_a_task_that_somebody_holds_is_asked_for_again_for_a_while(
    pool: asyncpg.Pool, sql: asyncpg.Connection, database_url: str
) -> None:
    ids = await accept(pool, A, B)
    patient, impatient = Acts(pool, Clock(), patience_seconds=60), Acts(pool, Clock(), patience_seconds=0)
    async with sql.transaction():
        await sql.execute("SELECT FROM task WHERE id = $1 FOR UPDATE", ids[0])
        with pytest.raises(StorageUnavailableError):
            await impatient.cancel(ids[0])
        waiting = asyncio.create_task(patient.cancel(ids[0]))
        assert await patient.cancel(ids[1]) == "cancelled"
        assert not waiting.done()
    assert await waiting == "cancelled"
    await patient.close()
    await impatient.close()


async def test_what_is_kept_is_found_with_what_it_is_of(pool: asyncpg.Pool, sql: asyncpg.Connection) -> None:
    ids = await accept(pool, A, B)
    acts = Acts(pool, Clock())
    assert await acts.find_again(ids[0], None) is None, "it has not ended"
    await apply(pool, *(finish(dispatch, 404 if dispatch.id == ids[0] else 200) for dispatch in await claim(pool, 9)))
    again = await acts.find_again(ids[0], "order-77")
    assert again
    assert again.parameters == "{}"
    assert (again.wishes.external_id, again.wishes.retry_of, again.wishes.sealed_for) == ("order-77", ids[0], None)
    assert await acts.find_again(ids[1], None) is None, "it is forgotten"
    await acts.close()


async def test_what_is_sealed_can_be_tried_again_and_again(
    database: DatabaseSettings, pool: asyncpg.Pool, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    """It is handed on as it was sealed for the first task, and so its reader is told which one that was."""
    keys = make_keys(tmp_path)
    settings = Settings(
        **database.model_dump(), seal_public_key_file=keys.public, idempotency_secret=SecretStr(IDEMPOTENCY_SECRET)
    )
    submission, acts = Submission(pool, settings, asyncio.Event(), Clock()), Acts(pool, Clock())
    first = UUID(str(await submission.submit(A, 14, PARAMETERS)))
    latest = first
    for _ in range(3):
        await end_by_hand(sql, "true")
        again = await acts.find_again(latest, None)
        assert again
        latest = UUID(str(await submission.submit(A, 14, again.parameters, None, again.wishes)))
        [dispatch] = await claims.claim(pool, 9)
        assert (dispatch.id, dispatch.sealed_for) == (latest, first)
        opener = Opener([keys.private])
        assert opener.open(dispatch.parameters, first, A) == PARAMETERS
        with pytest.raises(OpenError):
            opener.open(dispatch.parameters, latest, A)
        await begin(pool, dispatch)
    await acts.close()
    await submission.close()


async def test_plain_parameters_that_look_sealed_or_are_sealed_from_now_on_are_sealed_for_the_new_task(
    database: DatabaseSettings, pool: asyncpg.Pool, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    keys = make_keys(tmp_path)
    settings = Settings(**database.model_dump(), idempotency_secret=SecretStr(IDEMPOTENCY_SECRET))
    plain, acts = Submission(pool, settings, asyncio.Event(), Clock()), Acts(pool, Clock())
    own = json.dumps({"sealed": "1.0123456789abcdef.x.y", "username": "admin"}, separators=(",", ":"))
    first = await plain.submit(A, 14, own)
    await end_by_hand(sql, "true")
    again = await acts.find_again(first, None)
    assert again
    assert again.wishes.sealed_for is None
    sealing = Submission(
        pool, settings.model_copy(update={"seal_public_key_file": keys.public}), asyncio.Event(), Clock()
    )
    second = await sealing.submit(A, 14, again.parameters, None, again.wishes)
    [dispatch] = await claims.claim(pool, 9)
    assert dispatch.sealed_for is None
    assert Opener([keys.private]).open(dispatch.parameters, second, A) == own
    for each in (plain, sealing):
        await each.close()
    await acts.close()
