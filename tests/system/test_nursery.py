"""That what the nursery starts is a process as any other."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.nursery import Nursery
from tests.system.spawning import base_environment, free_port


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def test_it_runs_as_by_python_m_and_ends_with_its_own_code(nursery: Nursery, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.log", tmp_path / "bad.log"
    environment = base_environment() | {"MARK": "of this child"}
    assert (
        nursery.fork(["timeit", "-n1", "-r1", "import os; print(os.environ['MARK'])"], environment, good).wait(60) == 0
    )
    assert good.read_text().startswith("of this child")
    assert nursery.fork(["no_such_module"], environment, bad).wait(60) == 1
    assert "No module named no_such_module" in bad.read_text()
    assert [file.stat().st_mode & 0o777 for file in (good, bad)] == [0o600, 0o600]


def test_it_is_waited_for_signalled_and_limited_as_any(nursery: Nursery, tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    arguments = ["http.server", str(free_port()), "--bind", "127.0.0.1"]
    child = nursery.fork(arguments, base_environment(), log_file, descriptors=123)
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0)
    assert os.getsid(child.pid) == child.pid
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    [limit] = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert limit[3:5] == ["123", "123"]
    child.kill()
    assert child.wait(60) == -9
    assert child.poll() == -9


def test_nothing_outlives_it(nursery: Nursery, tmp_path: Path) -> None:
    arguments = ["http.server", str(free_port()), "--bind", "127.0.0.1"]
    child = nursery.fork(arguments, base_environment(), tmp_path / "server.log")
    nursery.close()
    assert child.wait(60) == -9
