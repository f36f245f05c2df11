"""The schema, put into a database by the tool that also does it in production."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from service_b.database_url import driver_url
from tests.system.spawning import ROOT, base_environment


def dbmate(url: str, *command: str, timeout: float = 60) -> str:
    """Run dbmate with our migrations on the database of the URL (which `up` creates), and return what it printed.

    The URL goes by the environment: an argument is there for everybody on this machine to read.
    """
    program = str(Path(sys.executable).with_name("dbmate"))
    try:
        done = subprocess.run(
            [program, "--no-dump-schema", "--migrations-dir", "db/migrations", *command],
            cwd=ROOT,
            env=base_environment() | {"DATABASE_URL": url, "PGSSLMODE": "prefer"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"dbmate {' '.join(command)} did not end within {timeout:g} s") from None
    if done.returncode:
        raise RuntimeError(f"dbmate {' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def single_hosts(url: str) -> list[str]:
    """Split a URL of several hosts, which dbmate does not know, into one for each, which must take writes."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query))
    names = hosts.split(",")
    if len(names) > 1:
        query |= {"target_session_attrs": "read-write"}
    return [urlunsplit(parts._replace(netloc=login + at + name, query=urlencode(query))) for name in names]


def migrate(url: str) -> None:
    """Bring a database to the newest schema; a private one is made first, and replicas may do so at the same time."""
    try:
        *others, last = single_hosts(driver_url(url))
    except ValueError as error:
        raise RuntimeError(f"DATABASE_URL {error}") from None
    for one in others:
        try:
            dbmate(one, "up")
        except (RuntimeError, TimeoutError):
            continue
        return
    dbmate(last, "up")
