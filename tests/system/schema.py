"""`python -m tests.system.schema`: writes `db/schema.sql`, what the migrations amount to."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg

from tests.system.migrate import migrate
from tests.system.postgres import PostgreSQL, installed_programs
from tests.system.spawning import ROOT, base_environment

SCHEMA_FILE = ROOT / "db" / "schema.sql"


def dump_schema(url: str, file: Path) -> None:
    """Write the schema of a migrated database to a file, as dbmate writes it; drop the days' partitions first."""
    asyncio.run(_drop_partitions(url))
    environment = base_environment()
    # pg_dump must be at least as new as the server.
    environment["PATH"] = f"{installed_programs()}:{environment['PATH']}"
    done = subprocess.run(
        [
            Path(sys.executable).with_name("dbmate"),
            *("--url", f"{url}?sslmode=disable"),
            *("--migrations-dir", "db/migrations", "--schema-file", str(file), "dump"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dbmate dump: {done.stderr or done.stdout}")


async def _drop_partitions(url: str) -> None:
    connection = await asyncpg.connect(url)
    while await connection.fetchval("SELECT finished_drop_oldest(-99, 'infinity')"):
        pass
    await connection.close()


def main() -> None:
    """Migrate a private server, and dump it."""
    with tempfile.TemporaryDirectory() as folder, PostgreSQL(Path(folder), durable=False) as server:
        migrate(server.dsn())
        dump_schema(server.dsn(), SCHEMA_FILE)


if __name__ == "__main__":
    main()
