"""The three processes under users of the broker and of the database that may do what the README says, and no more."""

from datetime import UTC, datetime, timedelta

import aiormq
import asyncpg
import pytest
from yarl import URL

from messaging.definitions import rights
from tests.conftest import eventually
from tests.e2e.conftest import USERS, Fleet, in_thread, serials
from tests.queues import count_ready
from tests.system.migrate import Roles


async def test_three_users_serve_a_task_and_put_rubbish_aside(
    fleet: Fleet, amqp: aiormq.abc.AbstractChannel, sql: asyncpg.Connection, roles: Roles
) -> None:
    if not fleet.users:
        pytest.skip("the users of AMQP_URL's broker are somebody else's business")
    newest = f"finished_{datetime.now(UTC) + timedelta(days=7):%Y%m%d}"
    await sql.execute(f"DROP TABLE {newest}")
    processes = {module: (await fleet.start(module))[0] for module in USERS}
    web = processes["service_b"]
    paths = await fleet.submit(web, serials(20))
    assert await fleet.final_codes(web, paths) == [200] * 20
    for queue in (fleet.queues.to_configure_queue, fleet.queues.configured_queue):
        await amqp.basic_publish(b"rubbish", routing_key=queue)
        await eventually(lambda dead=f"{queue}.dead": count_ready(amqp, dead))
    await eventually(lambda: sql.fetchval("SELECT to_regclass($1)", newest))
    assert all([await in_thread(process.is_ready) for process in processes.values()])
    for module, process in processes.items():
        assert URL(process.environment["AMQP_URL"]).user == USERS[module]
        assert await fleet.metric(process, "amqp_connects_total") == 1, "no channel was lost"
        assert "permission denied" not in process.log_file.read_text()
        if "DATABASE_URL" in process.environment:
            assert URL(process.environment["DATABASE_URL"]).user == roles.service
    assert set(USERS.values()) == set(rights(fleet.queues))
