"""One side of a paired run: a system of its own that sends tasks through when it is its turn.

Run as a file, with the tree to be measured as `PYTHONPATH`: so a commit that has no such file can be measured, too.
Reads `COUNT PREFIX` a line, and answers with a line of JSON: the CPU µs of one task, by process, and the rate.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.bench.path import send_through
from tests.bench.stage import Sizes, Stage


def main() -> None:
    """Take turns until there are no more."""
    folder = Path(tempfile.mkdtemp(prefix="turns-"))
    stage = Stage(folder, Sizes())
    with stage.postgres, stage.rabbitmq, stage.room("turns") as room:
        processes = room.start_all()
        for line in sys.stdin:
            count, prefix = line.split()
            passage = send_through(room, processes, int(count), prefix)
            print(json.dumps(passage.costs | {"rate": passage.rate}), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
