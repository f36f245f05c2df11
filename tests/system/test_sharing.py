"""Several processes that share one thing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import eventually
from tests.system.spawning import ROOT, base_environment

USER = """
import sys
from contextlib import contextmanager
from pathlib import Path
from tests.system.sharing import shared

@contextmanager
def make():
    print("made", flush=True)
    yield sys.argv[2]
    print("ended", flush=True)

with shared(Path(sys.argv[1]), make) as text:
    print(text, flush=True)
    sys.stdin.read()
"""


class User:
    """A process that needs it until it is let go."""

    def __init__(self, folder: Path, name: str) -> None:
        command = [sys.executable, "-c", USER, str(folder), name]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=base_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def let_go(self) -> str:
        """What it says until its end."""
        return self.process.communicate(timeout=90)[0].strip()


def waits_for_a_lock(pid: int) -> bool:
    """Whether the kernel says so: `1: -> FLOCK  ADVISORY  WRITE 123 ...`."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in locks)


async def test_the_first_makes_it_and_ends_it_after_the_others(tmp_path: Path) -> None:
    first = User(tmp_path, "first")
    assert [first.says(), first.says()] == ["made", "first"]
    second, third = User(tmp_path, "second"), User(tmp_path, "third")
    assert [second.says(), third.says()] == ["first", "first"]
    with ThreadPoolExecutor(1) as beside:
        ended = beside.submit(first.let_go)
        await eventually(lambda: waits_for_a_lock(first.process.pid))
        assert second.let_go() == ""
        # A process that dies needs nothing any more.
        third.process.kill()
        third.process.communicate()
        assert ended.result() == "ended"
        assert first.process.returncode == 0


def test_who_comes_after_its_end_makes_another(tmp_path: Path) -> None:
    for name in ("first", "second"):
        user = User(tmp_path, name)
        assert [user.says(), user.says()] == ["made", name]
        assert user.let_go() == "ended"


def test_what_cannot_be_made_is_tried_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    broken = [sys.executable, "-c", USER.replace("yield sys.argv[2]", "raise RuntimeError"), str(folder), "broken"]
    assert subprocess.run(broken, cwd=ROOT, env=base_environment(), capture_output=True, check=False).returncode == 1
    user = User(folder, "second")
    assert [user.says(), user.says()] == ["made", "second"]
    assert user.let_go() == "ended"
