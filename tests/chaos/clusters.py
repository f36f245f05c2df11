"""Clusters on one machine: three RabbitMQ nodes, and PostgreSQL with a synchronous standby."""

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from typing_extensions import override

from tests.chaos.clock import HOUR_SECONDS, Clock
from tests.chaos.nemeses import Nemesis
from tests.chaos.rig import HEARTBEAT_SECONDS, TO_CONFIGURE, Rig, Role, until
from tests.system.postgres import HERE, PostgreSQL
from tests.system.rabbitmq import ErlangNetwork, RabbitMQ
from tests.system.spawning import base_environment

NODES = 3


class BrokerCluster(Rig):
    """The system on three RabbitMQ nodes; every process knows all of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._erlang = ErlangNetwork(self.folder / "erlang")
        self.nodes = [
            RabbitMQ(self.folder / f"rabbitmq{number}", name=f"node{number}", network=self._erlang)
            for number in range(1, NODES + 1)
        ]
        self.broker = self.nodes[0]

    @property
    @override
    def amqp_url(self) -> str:
        return ",".join(node.url for node in self.nodes if node not in self.killed)

    @property
    def killed(self) -> list[RabbitMQ]:
        """The nodes that are down."""
        return [node for node in self.nodes if node._process is None or node._process.poll() is not None]

    @override
    async def start_broker(self) -> None:
        for node in self.nodes:
            await asyncio.to_thread(node.start)
        for node in self.nodes[1:]:
            for command in (["stop_app"], ["reset"], ["join_cluster", self.nodes[0].node], ["start_app"]):
                await asyncio.to_thread(node.ctl, *command)

    @override
    def process_amqp_url(self, role: Role) -> str:
        return ",".join(f"{node.url}?heartbeat={HEARTBEAT_SECONDS}" for node in self.nodes)

    @override
    def stop_servers(self) -> None:
        for node in self.nodes:
            node.kill()
        self._erlang.stop()
        self.database.stop()
        self.database.remove()

    def leader(self) -> RabbitMQ:
        """The node that leads the queue `to_configure`."""
        alive = [node for node in self.nodes if node not in self.killed]
        listed = alive[0].ctl("list_queues", "name", "leader", "--silent")
        names = dict(line.split()[:2] for line in listed.splitlines() if len(line.split()) >= 2)
        return next((node for node in alive if node.node == names.get(TO_CONFIGURE)), alive[0])


async def _kill_leader(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    assert isinstance(rig, BrokerCluster)
    leader = await asyncio.to_thread(rig.leader)
    rig.history.write("leader.killed", node=leader.node)
    await asyncio.to_thread(leader.kill)
    yield
    await asyncio.to_thread(leader.start)


async def _kill_follower(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    assert isinstance(rig, BrokerCluster)
    leader = await asyncio.to_thread(rig.leader)
    follower = rng.choice([node for node in rig.nodes if node is not leader])
    await asyncio.to_thread(follower.kill)
    yield
    await asyncio.to_thread(follower.start)


def _cut_off(rig: "BrokerCluster", node: RabbitMQ) -> None:
    """Let a node and the others refuse each other: with another cookie no Erlang node lets it in."""
    for other in rig.nodes:
        if other is not node:
            peer = f"'{other.node}'"
            node.ctl("eval", f"erlang:set_cookie({peer}, nobodys), erlang:disconnect_node({peer}).")


async def _partition(leads: bool, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """One node of three is cut off from the others, not from its clients: both sides are talked to.

    RabbitMQ by itself goes on on both sides for ever: the smaller one is started again, as its documentation says.
    """
    assert isinstance(rig, BrokerCluster)
    leader = await asyncio.to_thread(rig.leader)
    node = leader if leads else rng.choice([node for node in rig.nodes if node is not leader])
    rig.history.write("cut.off", node=node.node, leads=leads)
    await asyncio.to_thread(_cut_off, rig, node)
    for each in rig.nodes:
        seen = await asyncio.to_thread(each.ctl, "eval", "length(nodes()).")
        rig.history.write("sees", node=each.node, others=int(seen))
    yield
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)


class DatabaseCluster(Rig):
    """The system on a PostgreSQL with a synchronous standby; every process knows both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.primary = self.database
        # Whoever takes over may have another idea of the time.
        self._standbys_clock = Clock()
        self._standbys_clock.set(random.choice((-HOUR_SECONDS, HOUR_SECONDS)))
        self.standby = Standby(self.folder / "standby", self.primary, self._standbys_clock)
        self.failed_over = False

    @override
    async def start_database(self) -> None:
        await super().start_database()
        await asyncio.to_thread(self.standby.start)
        async with self.admin() as connection:
            await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await connection.execute("SELECT pg_reload_conf()")

        async def is_synchronous() -> bool:
            async with self.admin() as connection:
                state = await connection.fetchval("SELECT sync_state FROM pg_stat_replication")
                return bool(state == "sync")

        if not await until(is_synchronous, 60):
            raise TimeoutError("the standby does not become synchronous")

    @property
    @override
    def database_url(self) -> str:
        return self.standby.dsn() if self.failed_over else self.primary.dsn()

    @override
    def process_database_url(self, role: Role) -> str:
        user, password, name = self.primary.user, self.primary.password, self.primary.database
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://{user}:{password}@{hosts}/{name}"

    @override
    def stop_servers(self) -> None:
        self.broker.stop()
        self.standby.stop()
        self.standby.remove()
        self._standbys_clock.remove()
        self.primary.stop()
        self.primary.remove()


class Standby(PostgreSQL):
    """A physical copy that follows its primary until it is promoted."""

    def __init__(self, folder: Path, primary: PostgreSQL, clock: Clock) -> None:
        super().__init__(folder, durable=False, environment=clock.environment)
        self._primary = primary

    @override
    def _initialise(self) -> None:
        assert self._programs
        source = f"host=127.0.0.1 port={self._primary.port} user={self.user} password={self.password}"
        done = subprocess.run(
            [str(self._programs / "pg_basebackup"), "-D", HERE, "-d", source, "-R", "-X", "stream", "-c", "fast"],
            env=base_environment(),
            cwd=self._data,
            user=self._owner,
            group=self._owner,
            extra_groups=None if self._owner is None else [],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"pg_basebackup: {done.stderr}")


async def _fail_over(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """The primary is gone for good; the standby, which has every commit, becomes the primary."""
    assert isinstance(rig, DatabaseCluster)
    await asyncio.to_thread(rig.primary.kill)
    yield
    connection = await asyncpg.connect(rig.standby.dsn())
    try:
        # It has no standby of its own to wait for.
        await connection.execute("SELECT pg_promote(true, 60)")
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
    rig.failed_over = True


CLUSTER_NEMESES = {
    nemesis.name: nemesis
    for nemesis in (
        Nemesis("kill the queue leader's node", "broker", asynccontextmanager(_kill_leader), (3, 6)),
        Nemesis("kill a follower's node", "broker", asynccontextmanager(_kill_follower), (3, 6)),
        Nemesis("cut off the queue leader's node", "broker", asynccontextmanager(partial(_partition, True)), (10, 15)),
        Nemesis("cut off a follower's node", "broker", asynccontextmanager(partial(_partition, False)), (10, 15)),
        Nemesis("fail over to the standby", "database", asynccontextmanager(_fail_over), (1, 3)),
    )
}
SCENARIOS: dict[str, tuple[type[Rig], tuple[str, ...]]] = {
    "broker cluster": (
        BrokerCluster,
        ("kill the queue leader's node", "kill a follower's node", "kill the queue leader's node"),
    ),
    "broker partition": (
        BrokerCluster,
        ("cut off the queue leader's node", "cut off a follower's node", "cut off the queue leader's node"),
    ),
    "database cluster": (DatabaseCluster, ("fail over to the standby",)),
}
