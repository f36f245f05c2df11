"""The three processes under users of the broker and of the database that may do what the README says, and no more."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiormq
import asyncpg
from yarl import URL

from messaging.definitions import rights
from tests.conftest import eventually, own_queues
from tests.e2e.conftest import in_thread, open_fleet, serials
from tests.fake_a import FakeA
from tests.queues import count_ready, declare
from tests.system.processes import Module
from tests.system.rabbitmq import RabbitMQ

USERS: dict[Module, str] = {"service_b": "web", "service_b.results": "results", "configurator": "configurator"}


async def test_three_users_serve_a_task_and_put_rubbish_aside(
    *,
    rabbitmq: RabbitMQ,
    tmp_path: Path,
    database_url: str,
    service_url: str,
    sql: asyncpg.Connection,
    fake_a: FakeA,
) -> None:
    async with own_queues(rabbitmq.url) as settings:
        newest = f"finished_{datetime.now(UTC) + timedelta(days=7):%Y%m%d}"
        await sql.execute(f"DROP TABLE {newest}")
        connection = await aiormq.connect(rabbitmq.url)
        admin = await connection.channel()
        await declare(admin, settings)
        async with open_fleet(tmp_path / "logs", settings, database_url, fake_a, DATABASE_URL=service_url) as fleet:
            processes = {}
            for module, user in USERS.items():
                await in_thread(rabbitmq.ctl, "add_user", user, user)
                await in_thread(rabbitmq.grant, user, settings)
                url = URL(str(settings.nodes[0])).with_user(user).with_password(user)
                [processes[module]] = await fleet.start(module, AMQP_URL=str(url))
            web = processes["service_b"]
            paths = await fleet.submit(web, serials(20))
            assert await fleet.final_codes(web, paths) == [200] * 20
            for queue in (settings.to_configure_queue, settings.configured_queue):
                await admin.basic_publish(b"rubbish", routing_key=queue)
                await eventually(lambda dead=f"{queue}.dead": count_ready(admin, dead))
            await eventually(lambda: sql.fetchval("SELECT to_regclass($1)", newest))
            assert all([await in_thread(process.is_ready) for process in processes.values()])
            for process in processes.values():
                assert await fleet.metric(process, "amqp_connects_total") == 1, "no channel was lost"
                assert "permission denied" not in process.log_file.read_text()
        await connection.close()
    assert set(USERS.values()) == set(rights(settings))
