"""What the private servers and the processes write may hold passwords: it is for its owner alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.postgres import PostgreSQL
from tests.system.processes import Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import ROOT

MAIN = """
import sys
from pathlib import Path
from tests.system import __main__ as system
system.LOCAL = Path(sys.argv.pop(1))
system.COMMANDS["write"] = lambda: (system.LOCAL / "log").write_text("a password")
sys.exit(0 if system.main() else 1)
"""


@pytest.fixture(autouse=True)
def open_handed() -> Iterator[None]:
    """A umask as most people have it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What somebody else may read, write or enter; but a link's own rights say nothing."""
    found = [folder, *folder.rglob("*")]
    assert len(found) > 1
    return [str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o077]


def test_postgresql(tmp_path: Path) -> None:
    server = PostgreSQL(tmp_path / "some" / "postgres", durable=False)
    with server:
        assert open_to_others(tmp_path / "some" / "postgres") == []
        if server._temporary:
            assert server._temporary.stat().st_mode & 0o077 == 0
    again = PostgreSQL(tmp_path / "some" / "postgres", durable=False)
    with again:  # Whoever its owner is, the data is still where it was.
        assert open_to_others(tmp_path / "some" / "postgres") == []


def test_rabbitmq(tmp_path: Path) -> None:
    with RabbitMQ(tmp_path / "rabbitmq") as node:
        assert node.log_file.read_text()
        assert open_to_others(tmp_path / "rabbitmq") == []


def test_a_process(tmp_path: Path) -> None:
    with Process("service_a", tmp_path / "logs") as process:
        assert process.log_file.exists()
        assert open_to_others(tmp_path / "logs") == []


def test_what_make_starts(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir(mode=0o755)
    subprocess.run([sys.executable, "-c", MAIN, str(local), "write"], cwd=ROOT, check=True)
    assert open_to_others(local) == []


def test_what_the_bootstrap_makes(tmp_path: Path) -> None:
    script = tmp_path / "tests" / "system" / "bootstrap.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "tests" / "system" / "bootstrap.sh").read_bytes())
    subprocess.run(["sh", script], check=False, capture_output=True)
    assert (tmp_path / ".local").stat().st_mode & 0o077 == 0
