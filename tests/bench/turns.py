"""One side of a paired run: a system of its own that sends tasks through when it is its turn.

Run as a file, with the tree to be measured as `PYTHONPATH`: so a commit that has no such file can be measured, too.
Reads `KIND COUNT PREFIX` a line (kind: path, accept), and answers with a line of JSON: the CPU µs of one task, by
process, and the rate.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.bench.load import Load, generate
from tests.bench.meter import Meter
from tests.bench.path import send_through
from tests.bench.stage import Room, Sizes, Stage, first_id, per_task, pids
from tests.bench.taker import taking
from tests.system.processes import Process

CONNECTIONS = 64


def main() -> None:
    """Take turns until there are no more."""
    folder = Path(tempfile.mkdtemp(prefix="turns-"))
    stage = Stage(folder, Sizes())
    with (
        stage.postgres,
        stage.rabbitmq,
        stage.room("turns") as room,
        stage.room("accepting") as accepting,
        taking(accepting),
    ):
        processes, web = room.start_all(), accepting.start("service_b")
        for line in sys.stdin:
            kind, count, prefix = line.split()
            if kind == "path":
                passage = send_through(room, processes, int(count), prefix)
                told = passage.costs | {"rate": passage.rate}
            else:
                told = _accept(accepting, web, int(count), prefix)
            print(json.dumps(told), flush=True)
    shutil.rmtree(folder)


def _accept(room: Room, web: Process, count: int, prefix: str) -> dict[str, float]:
    """Submit so many tasks, each of which is handed to the broker, too."""
    meter = Meter(room.servers | pids([web]))
    result = generate(Load(web.port, CONNECTIONS, count=count, prefix=prefix))
    room.wait_for_dispatch(first_id(result.began))
    return per_task(meter.seconds(), result.count) | {"rate": result.rate}


if __name__ == "__main__":
    main()
