"""The database's share of the floor: the statements of a task's way, on tables with no more than these need."""

import json
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from tests.bench.pieces import AT_ONCE, piece
from tests.bench.report import Report
from tests.bench.stage import Stage, parameters

TABLES = """
CREATE TABLE bare (
    id uuid PRIMARY KEY, equipment_id text NOT NULL, parameters json NOT NULL, due_at timestamptz,
    lease uuid, begun_at timestamptz, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON bare (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE bare_finished (
    id uuid PRIMARY KEY, equipment_id text NOT NULL, code smallint NOT NULL, created_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now()
)
"""

INSERT = """
INSERT INTO bare (id, equipment_id, parameters, due_at)
SELECT id, equipment_id, parameters::json, now()
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS new (id, equipment_id, parameters)
"""

CLAIM = """
WITH due AS (SELECT id FROM bare WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
UPDATE bare SET due_at = NULL FROM due WHERE bare.id = due.id RETURNING bare.id, equipment_id, parameters
"""

LEASE = """
UPDATE bare SET begun_at = now(), lease = asked.lease
FROM unnest($1::uuid[], $2::uuid[]) AS asked (id, lease)
WHERE bare.id = asked.id AND begun_at IS NULL RETURNING bare.id
"""

MOVE = """
WITH change AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::smallint[]) AS change (id, code)
), gone AS (
    DELETE FROM bare USING change WHERE bare.id = change.id RETURNING bare.id, equipment_id, code, created_at
)
INSERT INTO bare_finished (id, equipment_id, code, created_at) SELECT * FROM gone
"""


async def measure(stage: Stage, report: Report) -> None:
    """Insert, claim, lease and finish in batches."""
    server = {"server": stage.servers["postgresql"]}
    count = stage.sizes.rows
    connection: asyncpg.Connection = await asyncpg.connect(stage.postgres.dsn("postgres"))
    await connection.execute(TABLES)
    ids = [uuid7() for _ in range(count)]
    batches = [ids[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
    text = json.dumps(parameters())

    async def insert(batch: list[UUID]) -> None:
        serials = [f"BENCH{number:08}" for number in range(len(batch))]
        await connection.execute(INSERT, batch, serials, [text] * len(batch))

    async def claim(batch: list[UUID]) -> None:
        await connection.fetch(CLAIM, len(batch))

    async def lease(batch: list[UUID]) -> None:
        await connection.fetch(LEASE, batch, [uuid4() for _ in batch])

    async def move(batch: list[UUID]) -> None:
        await connection.execute(MOVE, batch, [200] * len(batch))

    def all_batches(operation: Callable[[list[UUID]], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
        async def run(_: int) -> None:
            for batch in batches:
                await operation(batch)

        return run

    try:
        for operation in (insert, claim, lease, move):
            await piece(report, operation.__name__, server, count, all_batches(operation))
        if left := await connection.fetchval("SELECT count(*) FROM bare"):
            raise RuntimeError(f"{left} of {count} rows were not moved")
    finally:
        await connection.execute("DROP TABLE bare, bare_finished")
        await connection.close()
