"""`python -m tests.bench.sealing`: what sealing costs a task, in CPU time and in bytes. It needs no servers."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from messaging.sealing.opener import Opener
from messaging.sealing.sealer import Sealer
from tests.seals import make_keys

ROUNDS, COUNT = 7, 10_000
PARAMETERS = {
    "usual": {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]},
    "2 KiB": {"username": "admin", "password": "p" * 2000, "interfaces": [1, 2, 3, 4]},
}
SERIAL = "ABC1234"


def best(work: Callable[[], object], count: int = COUNT) -> float:
    """The CPU time of one call in µs: the least of some rounds, since others use the machine, too."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(count):
            work()
        rounds.append(1e6 * (time.process_time() - began) / count)
    return min(rounds)


def main() -> None:
    """Print a line for each kind of parameters."""
    keys, task_id = make_keys(Path(tempfile.mkdtemp(prefix="sealing-"))), uuid4()
    sealer, opener = Sealer(keys.public), Opener([keys.private])
    for name, parameters in PARAMETERS.items():
        text = json.dumps(parameters, separators=(",", ":"))
        sealed = sealer.seal(text, task_id, SERIAL)
        seal, opening = (
            best(lambda text=text: sealer.seal(text, task_id, SERIAL)),  # type: ignore[misc]
            best(lambda sealed=sealed: opener.open(sealed, task_id, SERIAL)),  # type: ignore[misc]
        )
        print(f"{name}: seal {seal:.1f} µs, open {opening:.1f} µs, {len(text)} bytes become {len(sealed)}")
    wraps = best(lambda: Sealer(keys.public), 200)
    print(f"a new data key, once in 10,000 tasks or a minute: {wraps:.0f} µs, reading the key's file included")
    plain = json.dumps(PARAMETERS["usual"])
    print(f"not sealed: open {best(lambda: opener.open(plain, task_id, SERIAL)):.2f} µs")


if __name__ == "__main__":
    main()
