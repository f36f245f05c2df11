"""What TLS, tokens and sealing cost: accepting and the whole path with one of them at a time, in turns with none."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.load import Load, generate
from tests.bench.meter import Meter
from tests.bench.path import send_through
from tests.bench.report import Report
from tests.bench.stage import Room, Stage, first_id, per_task, pids
from tests.bench.taker import taking
from tests.guards import Guards
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ

KINDS = ("none", "tokens", "sealing", "tls")
CONNECTIONS = 64


def measure(stage: Stage, report: Report) -> None:
    """Measure what a task costs all our processes and both servers, by CPU time, and the rates."""
    with ExitStack() as stack:
        accepting = {kind: stack.enter_context(_accepting(stage, kind)) for kind in KINDS}
        paths = {kind: stack.enter_context(_path(stage, kind)) for kind in KINDS}
        for turn in range(stage.sizes.rounds + 1):
            # Each is first as often as the others: who follows finds the servers still busy.
            order = KINDS[turn % len(KINDS) :] + KINDS[: turn % len(KINDS)]
            for kind in order:
                room, web = accepting[kind]
                rate, cost = _accept(room, web, stage.sizes.tasks, f"TURN{turn}X")
                if turn:
                    report.add(f"guards.{kind}.accept.rate", rate, "tasks/s")
                    report.add(f"guards.{kind}.accept.total", cost, "µs/task")
            for kind in order:
                room, processes = paths[kind]
                passage = send_through(room, processes, stage.sizes.tasks // 2, f"TURN{turn}X")
                if turn:
                    report.add(f"guards.{kind}.path.rate", passage.rate, "tasks/s")
                    report.add(f"guards.{kind}.path.total", sum(passage.costs.values()), "µs/task")


@contextmanager
def _room(stage: Stage, kind: str, name: str) -> Iterator[Room]:
    """A room with one kind of guard. The TLS of PostgreSQL ends in a front, which is not counted."""
    with ExitStack() as stack:
        folder = stage.folder / f"guards_{name}_{kind}"
        folder.mkdir()
        guards = Guards(folder, tls=kind == "tls", tokens=kind == "tokens", sealing=kind == "sealing")
        servers = stage
        if guards.certificates:
            node = stack.enter_context(RabbitMQ(folder / "rabbitmq", tls=guards.certificates))
            servers = stage.with_broker(node)
        room = stack.enter_context(servers.room(f"{name}_{kind}"))
        room.guards = guards
        room.environment["DATABASE_URL"] = stack.enter_context(guards.database(room.database_url))
        yield room


@contextmanager
def _accepting(stage: Stage, kind: str) -> Iterator[tuple[Room, Process]]:
    with _room(stage, kind, "accepting") as room, taking(room):
        yield room, room.start("service_b")


@contextmanager
def _path(stage: Stage, kind: str) -> Iterator[tuple[Room, list[Process]]]:
    with _room(stage, kind, "passing") as room:
        yield room, room.start_all()


def _accept(room: Room, web: Process, count: int, prefix: str) -> tuple[float, float]:
    meter = Meter(room.servers | pids([web]))
    guards = room.guards
    load = Load(web.port, CONNECTIONS, count=count, prefix=prefix, token=guards.token, ca_file=guards.ca_file)
    result = generate(load)
    room.wait_for_dispatch(first_id(result.began))
    return result.rate, sum(per_task(meter.seconds(), result.count).values())
