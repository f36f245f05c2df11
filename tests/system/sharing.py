"""What the processes of a test run share: who needs it first makes it, and ends it when nobody needs it any more."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.system.spawning import make_private


@contextmanager
def shared(folder: Path, make: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """Yield the same text, a URL say, to all who name the same folder; `make` is entered by the first of them alone.

    The kernel takes the locks from a process that dies.
    """
    make_private(folder)
    said = folder / "said"
    with (folder / "using").open("w") as using, ExitStack() as stack:
        with (folder / "coming").open("w") as coming:
            fcntl.flock(coming, fcntl.LOCK_EX)
            # Had by somebody as long as it is there; where it is being ended, this waits for the end.
            fcntl.flock(using, fcntl.LOCK_SH)
            is_first = not said.exists()
            if is_first:
                said.write_text(stack.enter_context(make()))
            text = said.read_text()
        try:
            yield text
        finally:
            if is_first:
                fcntl.flock(using, fcntl.LOCK_EX)
                said.unlink()
