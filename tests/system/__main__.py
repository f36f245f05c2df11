"""`python -m tests.system demo | up | down | logs`: what the Makefile's targets run."""

import os
import signal
import sys

from tests.system.demo import demo
from tests.system.spawning import LOCAL, PRIVATE, make_private
from tests.system.up import down, follow_logs, supervise, up

COMMANDS = {"demo": demo, "up": up, "down": down, "logs": follow_logs, "supervise": supervise}


def main() -> int:
    """Run the command; a signal that ends us first ends what we have started."""
    command = COMMANDS.get(" ".join(sys.argv[1:]))
    if not command:
        print("usage: python -m tests.system demo | up | down | logs", file=sys.stderr)
        return 2
    os.umask(PRIVATE)
    make_private(LOCAL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0 if command is supervise else 1))
    try:
        return command()
    except (RuntimeError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
