"""Tasks that come with a key of their client's: the same key makes one task, however often it comes.

The key's row and the task's are stored by one statement. So whoever is asked twice at once waits for no more than that
statement of another process's, whatever becomes of the process itself; and there is no key without its task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from typing_extensions import Unpack

from service_b.database import Queries
from service_b.tasks import promotion
from service_b.tasks.inserts import BEHIND, GIVEN, STORE, NewTask, Terms, arguments

INSERT_ONCE = f"""
WITH asked AS MATERIALIZED {GIVEN}, crowded AS MATERIALIZED (
    SELECT equipment_id,
        (SELECT count(*) FROM (
            SELECT FROM task WHERE task.equipment_id = device.equipment_id AND active LIMIT 1
        ) AS active)
        + {BEHIND.format("$19")} AS unfinished
    FROM (SELECT DISTINCT equipment_id FROM asked) AS device
), placed AS (
    SELECT id, submitted_by, equipment_id, key, digest,
        row_number() OVER (PARTITION BY equipment_id ORDER BY position) AS place
    FROM asked JOIN unnest($17::text[], $18::bytea[]) WITH ORDINALITY AS given (key, digest, position) USING (position)
), keyed AS (
    INSERT INTO idempotency_key (submitted_by, key, task_id, digest)
    SELECT coalesce(submitted_by, ''), key, id, digest
    -- Judged before anything is stored: what finds no room leaves no key.
    FROM placed JOIN crowded USING (equipment_id) WHERE unfinished + place <= $19
    -- Always in the same order, and all keys before any device: so two batches cannot deadlock.
    ORDER BY coalesce(submitted_by, '') COLLATE "C", key COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING task_id
), new AS MATERIALIZED (
    SELECT * FROM asked WHERE id IN (SELECT task_id FROM keyed)
), {STORE}
SELECT position, others.id IS NOT NULL AS waits FROM new LEFT JOIN others USING (id, position)
"""

FIND = """
SELECT position, known.task_id, known.digest
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (submitted_by, key, position)
CROSS JOIN LATERAL (
    SELECT task_id, digest FROM idempotency_key
    WHERE idempotency_key.submitted_by = asked.submitted_by AND idempotency_key.key = asked.key OFFSET 0
) AS known
"""

READ_HMAC_KEY = "SELECT secret FROM idempotency_secret"

DELETE_OLD = """
WITH deleted AS (
    DELETE FROM idempotency_key WHERE task_id = ANY(ARRAY(
        -- A day later than the tasks themselves.
        SELECT task_id FROM idempotency_key
        WHERE task_id < finished_first_id((least(now(), $2::timestamptz) AT TIME ZONE 'UTC')::date - $1::integer - 1)
        ORDER BY task_id LIMIT $3 FOR UPDATE SKIP LOCKED
    )) RETURNING task_id
)
SELECT count(*) FROM deleted
"""


@dataclass(frozen=True, slots=True)
class KeyedTask:
    """A task to store, its client's key, and what tells the same request from another one (32 bytes)."""

    task: NewTask
    key: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Known:
    """What a key stands for already."""

    task_id: UUID
    digest: bytes = field(repr=False)


async def find(connection: Queries, tasks: Sequence[KeyedTask]) -> list[Known | None]:
    """Tell what each task's key stands for already, for the token that the task came with; None if for nothing."""
    rows = await connection.fetch(FIND, [each.task.submitted_by or "" for each in tasks], [each.key for each in tasks])
    found = {row["position"]: Known(row["task_id"], row["digest"]) for row in rows}
    return [found.get(position) for position in range(1, len(tasks) + 1)]


async def insert_once(connection: Queries, tasks: Sequence[KeyedTask], **terms: Unpack[Terms]) -> set[UUID]:
    """Store new tasks, as `inserts.insert` does, and their keys; return those that were stored.

    Not stored is a task whose key is known by now (`find` tells), be it by an earlier one of the batch or of another
    process, whose commit is waited for; and one whose device has `max_per_device` unfinished ones already.
    """
    most = terms["max_per_device"]
    # Who has got a key is not refused any more.
    terms["max_per_device"] = most + len(tasks)
    given = arguments([each.task for each in tasks], **terms)
    rows = await connection.fetch(
        INSERT_ONCE, *given, [each.key for each in tasks], [each.digest for each in tasks], most
    )
    stored = [(tasks[row["position"] - 1].task, row["waits"]) for row in rows]
    await promotion.promote(connection, [task.equipment_id for task, waits in stored if waits])
    return {task.id for task, _ in stored}


async def read_hmac_key(connection: Queries) -> bytes:
    """Return what was made with the database, for those who have set no secret of their own."""
    secret: bytes = await connection.fetchval(READ_HMAC_KEY)
    return secret


async def delete_old(connection: Queries, retention_days: int, limit: int) -> int:
    """Delete keys of tasks that were accepted more than `retention_days` and a day ago; return how many."""
    deleted: int = await connection.fetchval(DELETE_OLD, retention_days, datetime.now(UTC), limit)
    return deleted
