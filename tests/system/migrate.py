"""The schema and the roles, put into a database by the tools that also do it in production."""

import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from yarl import URL

from service_b.database_url import driver_url
from tests.system.postgres import installed_programs
from tests.system.spawning import ROOT, base_environment

PROGRAMS = Path(sys.executable).parent


def _password() -> str:
    return secrets.token_urlsafe()


@dataclass(frozen=True)
class Roles:
    """Who migrates a database, and as whom the services connect to it; their passwords are made anew each time."""

    migrator: str = "migrator"
    service: str = "service"
    migrator_password: str = field(default_factory=_password, repr=False)
    service_password: str = field(default_factory=_password, repr=False)

    def service_url(self, url: str) -> str:
        """The URL of the same database for the services."""
        return str(URL(url).with_user(self.service).with_password(self.service_password))


def prepare(url: str, roles: Roles) -> None:
    """Make a private database with its roles as `db/migrate.sh` does; the URL is an administrator's."""
    run_script(environment_of(url, roles))


def environment_of(url: str, roles: Roles) -> dict[str, str]:
    """What `db/migrate.sh` is told."""
    at = URL(url)
    return {
        "PGHOST": at.host or "",
        "PGPORT": str(at.port),
        "PGDATABASE": at.path[1:],
        "PGUSER": at.user or "",
        "PGPASSWORD": at.password or "",
        "PGSSLMODE": "prefer",
        "MIGRATOR": roles.migrator,
        "MIGRATOR_PASSWORD": roles.migrator_password,
        "SERVICE": roles.service,
        "SERVICE_PASSWORD": roles.service_password,
    }


def run_script(environment: Mapping[str, str], timeout: float = 60) -> None:
    """Run `db/migrate.sh` with the programs of our packages."""
    path = f"{PROGRAMS}:{installed_programs()}:{base_environment()['PATH']}"
    _run("migrate.sh", [ROOT / "db" / "migrate.sh"], {**environment, "PATH": path}, timeout)


def dbmate(url: str, *command: str, timeout: float = 60) -> str:
    """Run dbmate with our migrations on the database of the URL (which `up` creates), and return what it printed.

    The URL goes by the environment: an argument is there for everybody on this machine to read.
    """
    arguments: list[str | Path] = [
        PROGRAMS / "dbmate",
        "--no-dump-schema",
        "--migrations-dir",
        "db/migrations",
        *command,
    ]
    return _run(f"dbmate {' '.join(command)}", arguments, {"DATABASE_URL": url, "PGSSLMODE": "prefer"}, timeout)


def _run(what: str, arguments: Sequence[str | Path], environment: Mapping[str, str], timeout: float) -> str:
    try:
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env=base_environment() | dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{what} did not end within {timeout:g} s") from None
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr or done.stdout}")
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
