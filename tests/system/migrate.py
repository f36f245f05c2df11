"""The schema, put into a database by the tool that also does it in production."""

import subprocess
import sys
from pathlib import Path

from tests.system.spawning import ROOT, base_environment


def dbmate(url: str, *command: str, timeout: float = 60) -> str:
    """Run dbmate with our migrations on the database of the URL (which `up` creates), and return what it printed."""
    program = str(Path(sys.executable).with_name("dbmate"))
    if "sslmode=" not in url:
        url += f"{'&' if '?' in url else '?'}sslmode=disable"
    done = subprocess.run(
        [program, "--url", url, "--no-dump-schema", "--migrations-dir", "db/migrations", *command],
        cwd=ROOT,
        env=base_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dbmate {' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def migrate(url: str) -> None:
    """Bring a database to the newest schema; a private one is made first, and replicas may do so at the same time."""
    dbmate(url, "up")
