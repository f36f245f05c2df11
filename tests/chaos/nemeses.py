"""The nemeses: each a context manager that does harm at its beginning and heals it at its end."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from tests.chaos.clock import stepped
from tests.chaos.former import former_configurator
from tests.chaos.messages import EXCHANGE, KEYS, duplicated, forged_outcomes, forged_work, moved_back, poisoned
from tests.chaos.network import LINKS
from tests.chaos.rig import (
    CLOCK,
    CONFIGURED,
    LIMIT_SECONDS,
    ROLES,
    TO_CONFIGURE,
    WIRE,
    Rig,
    Role,
    server_pids,
    signal_all,
    until,
)
from tests.chaos.sessions import locked_rows, old_snapshot
from tests.chaos.wire import silent_wire

Fault = Callable[[Rig, random.Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Nemesis:
    """`seconds`: how long the harm lasts; `needs`: what the rig must have. Of an area at most one works at a time."""

    name: str
    area: str
    fault: Fault
    seconds: tuple[float, float]
    needs: frozenset[str] = frozenset()


NEMESES: dict[str, Nemesis] = {}


def _add(
    name: str,
    area: str,
    fault: Callable[..., AsyncIterator[None]],
    seconds: tuple[float, float] = (2, 5),
    needs: tuple[str, ...] = (),
) -> None:
    NEMESES[name] = Nemesis(name, area, asynccontextmanager(fault), seconds, frozenset(needs))


# Our own processes.


async def _kill(role: Role, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    processes = rig.processes[role]
    victims = processes if rng.random() < 0.3 else [rng.choice(processes)]
    for victim in victims:
        await asyncio.to_thread(rig.kill, victim)
    yield
    for victim in victims:
        await asyncio.to_thread(rig.revive, victim)


async def _kill_everything(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    victims = rig.everyone()
    rng.shuffle(victims)
    for victim in victims:
        await asyncio.to_thread(rig.kill, victim)
    yield
    for victim in victims:
        await asyncio.to_thread(rig.revive, victim)


async def _pause(role: Role, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    victims = rig.processes[role] if rng.random() < 0.3 else [rng.choice(rig.processes[role])]
    for victim in victims:
        rig.pause(victim)
    yield
    for victim in victims:
        rig.resume(victim)


async def _stop(role: Role, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """A deployment: stopped in order, and started again."""
    victim = rng.choice(rig.processes[role])
    code = await asyncio.to_thread(victim.terminate, 60)
    rig.history.write("exit", name=victim.name, code=code)
    yield
    await asyncio.to_thread(victim.start, wait=False)


async def _results_away(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    for process in rig.processes["results"]:
        await asyncio.to_thread(process.terminate, 60)
    yield
    for process in rig.processes["results"]:
        await asyncio.to_thread(process.start, wait=False)


for _role in ROLES:
    _add(f"kill {_role}", "process", partial(_kill, _role))
    _add(f"pause {_role}", "process", partial(_pause, _role), (1, 10))
    _add(f"stop {_role}", "process", partial(_stop, _role), (0.5, 2))
_add("kill everything", "process", _kill_everything)
_add("results away", "process", _results_away, (8, 15))
_add("former configurator", "process", former_configurator, (5, 10))


# Service A.


async def _kill_a(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(rig.service_a.kill)
    yield
    await rig.service_a.start()


async def _pause_a(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    rig.service_a.pause()
    yield
    rig.service_a.resume()


async def _misbehave(mode: str, share: float, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    await rig.service_a.behave(mode, share)
    yield
    await rig.service_a.behave("answer", 0)


_add("kill a", "a", _kill_a)
_add("pause a", "a", _pause_a, (1, 1.5))
_add("a refuses", "a", partial(_misbehave, "refuse", 1.0))
_add("a resets", "a", partial(_misbehave, "reset", 0.5))
_add("a drops calls", "a", partial(_misbehave, "drop", 0.3))
_add("a hangs", "a", partial(_misbehave, "hang", 0.3))
_add("a talks garbage", "a", partial(_misbehave, "garbage", 0.5))
_add("a answers late", "a", partial(_misbehave, "late", 0.3))
_add("a behind a bad gateway", "a", partial(_misbehave, "gateway", 1.0), (5, 10))
_add("a compresses", "a", partial(_misbehave, "compressed", 0.5))
_add("a silent wire", "a", silent_wire, (LIMIT_SECONDS + 1, 2 * LIMIT_SECONDS), (WIRE,))


# The broker.


async def _kill_broker(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(rig.broker.kill)
    yield
    await asyncio.to_thread(rig.broker.start)


async def _pause_broker(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    pids = server_pids(rig.broker)
    signal_all(pids, signal.SIGSTOP)
    yield
    signal_all(pids, signal.SIGCONT)


async def _close_connections(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    for _ in range(rng.choice((1, 1, 3))):
        await asyncio.to_thread(rig.broker.ctl, "close_all_connections", "chaos")
    yield


async def _alarm(command: str, low: str, normal: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(rig.broker.ctl, command, low)
    try:
        yield
    finally:
        await asyncio.to_thread(rig.broker.ctl, command, normal)


async def _empty_queue(role: Role, queue: str, delete: bool, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """Purge or delete a queue when there is something in it: its readers stand still until there is."""
    async with rig.amqp() as channel:

        async def filled() -> bool:
            return ((await channel.queue_declare(queue, passive=True)).message_count or 0) >= 20

        for process in rig.processes[role]:
            rig.pause(process)
        try:
            full = await until(filled, 1.5)
            answer = await (channel.queue_delete(queue) if delete else channel.queue_purge(queue))
            rig.history.write("emptied", queue=queue, full=full, messages=answer.message_count)
        finally:
            for process in rig.processes[role]:
                rig.resume(process)
    yield


async def _unbind(queue: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """A queue loses its binding: what is published then reaches nobody, and its publisher must notice."""
    async with rig.amqp() as channel:
        await channel.queue_unbind(queue, EXCHANGE, routing_key=KEYS[queue])
    yield


async def _expire(role: Role, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """A policy lets messages expire that are not taken at once; those who take them stand still for a moment."""
    policy = "set_policy", "expiry", "^(to_configure|configured)$", '{"message-ttl":1}', "--apply-to", "queues"
    await asyncio.to_thread(rig.broker.ctl, *policy)
    try:
        for process in rig.processes[role]:
            rig.pause(process)
        await asyncio.sleep(1)
        for process in rig.processes[role]:
            rig.resume(process)
        yield
    finally:
        await asyncio.to_thread(rig.broker.ctl, "clear_policy", "expiry")


async def _move_back(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    """An operator moves the dead letters of a policy back to their queues."""
    async with asynccontextmanager(_expire)("configurator", rig, rng):
        pass
    yield
    await moved_back(rig)


_add("kill broker", "broker", _kill_broker, (1, 3))
_add("pause broker", "broker", _pause_broker, (2, 10))
_add("close connections", "broker", _close_connections, (0.5, 1))
_add("memory alarm", "broker", partial(_alarm, "set_vm_memory_high_watermark", "0.00001", "0.5"))
_add("disk alarm", "broker", partial(_alarm, "set_disk_free_limit", "100000GB", "50MB"))
_readers: dict[str, Role] = {TO_CONFIGURE: "configurator", CONFIGURED: "results"}
for _queue, _reader in _readers.items():
    _add(f"purge {_queue}", "broker", partial(_empty_queue, _reader, _queue, False), (0.1, 1))
    _add(f"delete {_queue}", "broker", partial(_empty_queue, _reader, _queue, True), (0.1, 1))
    _add(f"unbind {_queue}", "broker", partial(_unbind, _queue), (0.1, 1))
    _add(f"expire {_queue}", "broker", partial(_expire, _reader), (1, 3))
_add("dead letters moved back", "broker", _move_back, (0.1, 3))


# The database.


async def _kill_database(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    await asyncio.to_thread(rig.database.kill)
    yield
    await asyncio.to_thread(rig.database.start)


async def _pause_database(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    pids = server_pids(rig.database)
    signal_all(pids, signal.SIGSTOP)
    yield
    signal_all(pids, signal.SIGCONT)


TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'service_b'"


async def _terminate_backends(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    async with rig.admin() as connection:
        for _ in range(rng.choice((1, 3, 10))):
            await connection.execute(TERMINATE)
            await asyncio.sleep(rng.uniform(0, 0.3))
    yield


async def _statement_timeout(rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    name = rig.database.database
    milliseconds = rng.choice((1, 2, 4))
    async with rig.admin("postgres") as connection:
        await connection.execute(f"ALTER DATABASE {name} SET statement_timeout = {milliseconds}")
        await connection.execute(TERMINATE)
    yield
    async with rig.admin("postgres") as connection:
        await connection.execute(f"ALTER DATABASE {name} RESET statement_timeout")
        await connection.execute(TERMINATE)


_add("kill database", "database", _kill_database, (0.5, 3))
_add("pause database", "database", _pause_database, (2, 8))
_add("terminate backends", "database", _terminate_backends, (0.1, 0.5))
_add("statement timeout", "database", _statement_timeout)
_add("locked rows", "database", locked_rows, (6, 10))
_add("old snapshot", "database", old_snapshot, (5, 10))
_add("clock an hour back", "database", partial(stepped, -1), (5, 15), (CLOCK,))
_add("clock an hour ahead", "database", partial(stepped, 1), (5, 15), (CLOCK,))


# The network.


async def _cut(name: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    for _ in range(rng.choice((1, 1, 4))):
        await asyncio.sleep(rng.uniform(0, 0.7))
        rig.network.link(name).cut()
    yield


async def _black_hole(name: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    link = rig.network.link(name)
    link.blackhole(True)
    yield
    # This process may be slow: first it has to hear of all that was given up meanwhile, which must not arrive.
    await asyncio.sleep(0.1)
    # What hung in the line arrives late or never.
    if rng.random() < 0.5:
        link.cut()
    link.blackhole(False)


async def _delay(name: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    link = rig.network.link(name)
    link.delay(rng.uniform(0.05, 0.5))
    yield
    link.delay(0)


async def _slow(name: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    link = rig.network.link(name)
    link.throttle(rng.uniform(2000, 8000))
    yield
    link.throttle()


async def _cut_after_commit(name: str, rig: Rig, rng: random.Random) -> AsyncIterator[None]:
    link = rig.network.link(name)
    link.cut_after_commit(rng.uniform(0.05, 0.4))
    yield
    link.cut_after_commit(0)


for _link in LINKS:
    _add(f"cut {_link}", "network", partial(_cut, _link), (0.1, 1), (_link,))
    _add(f"black hole {_link}", "network", partial(_black_hole, _link), (2, 12), (_link,))
    _add(f"slow {_link}", "network", partial(_slow, _link), (4, 8), (_link,))
    _add(f"delay {_link}", "network", partial(_delay, _link), (2, 5), (_link,))
for _link in ("web-database", "results-database"):
    _add(f"cut after commit {_link}", "network", partial(_cut_after_commit, _link), (2, 5), (_link,))


# Messages.

_add("poison", "messages", poisoned)
_add("duplicate outcomes", "messages", partial(duplicated, "configured_key"))
_add("duplicate work", "messages", partial(duplicated, "to_configure_key"))
_add("forged work", "messages", forged_work, (3, 6))
_add("forged outcomes", "messages", forged_outcomes, (3, 6))
