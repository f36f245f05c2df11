"""Private RabbitMQ nodes from the distribution's package, apart from any other RabbitMQ of the machine."""

import json
import secrets
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.system.certificates import Certificates
from tests.system.spawning import PORTS, base_environment, end, free_port, make_private, spawn, wait_until

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
AMQP_GREETING = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1 specification, 4.2.2
LOOPBACK_ONLY = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"


class ErlangNetwork:
    """What the nodes of one cluster share: a cookie, and an epmd of their own, by which they find each other."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.epmd_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start epmd, unless it runs."""
        if self._process and self._process.poll() is None:
            return
        make_private(self.home)
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(0o600)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)
        log_file = self.home / "epmd.log"
        self._process = spawn(["epmd", "-port", str(self.epmd_port)], self.environment(), log_file)
        wait_until(lambda: _answers(self.epmd_port), "epmd", timeout=30, process=self._process, log_file=log_file)

    def stop(self) -> None:
        """Stop epmd."""
        if self._process:
            end(self._process, signal.SIGKILL, timeout=10)

    def environment(self) -> dict[str, str]:
        """What each Erlang program of this network is started with."""
        return base_environment() | {
            "HOME": str(self.home),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }


class RabbitMQ:
    """One private node on loopback ports. Its data stays in `folder`: stopped or killed, it can be started again.

    Nodes that shall form a cluster share a `network`; a node of its own makes and ends one. `definitions`: what it
    reads at each start; `guest` must be among its users. With `tls` it takes no client without.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "private",
        port: int | None = None,
        management_port: int | None = None,
        network: ErlangNetwork | None = None,
        definitions: Mapping[str, Any] | None = None,
        tls: Certificates | None = None,
    ) -> None:
        self.folder = folder
        self.definitions = definitions
        self.node = f"{name}@localhost"
        self.port = port or free_port()
        self.management_port = management_port
        self.log_file = folder / "rabbitmq.log"
        self._tls = tls
        self._own_network = network is None
        self.network = network or ErlangNetwork(folder)
        self._distribution_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect, as the administrator."""
        if self._tls:
            return f"amqps://guest:guest@127.0.0.1:{self.port}/?cafile={self._tls.ca}"
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self, timeout: float = 120) -> None:
        """Start the node, on the data that it had, and wait (up to `timeout` seconds) until it serves AMQP."""
        if not PROGRAMS.is_dir():
            raise RuntimeError(f"RabbitMQ is not installed ({PROGRAMS} is missing): tests/system/bootstrap.sh rabbitmq")
        make_private(self.folder)
        self._write_configuration()
        self.network.start()
        self._process = spawn([PROGRAMS / "rabbitmq-server"], self._environment(), self.log_file, folder=self.folder)
        wait_until(
            lambda: _serves_amqp(self.port, self._tls),
            self.node,
            timeout=timeout,
            process=self._process,
            log_file=self.log_file,
        )

    def stop(self) -> None:
        """Stop the node gracefully."""
        if self._process:
            end(self._process, signal.SIGTERM, timeout=60)
        if self._own_network:
            self.network.stop()

    def kill(self) -> None:
        """End the node at once, as a power cut would."""
        if self._process:
            end(self._process, signal.SIGKILL, timeout=10)

    def has_written(self, queue: str) -> bool:
        """Whether a quorum queue outlives `kill`.

        RabbitMQ 3.10 writes a new one's name down half a second later (`ra_directory`); killed before, it has a queue
        that never gets a leader again.
        """
        name = f"%2F_{queue}".encode()
        names = self.folder / "data" / self.node / "quorum" / self.node / "names.dets"
        return bytes([len(name)]) + name in names.read_bytes()

    def ctl(self, *arguments: str, timeout: float = 60) -> str:
        """Run `rabbitmqctl` against this node and return what it printed."""
        done = subprocess.run(
            [PROGRAMS / "rabbitmqctl", "--quiet", *arguments],
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

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

    def _write_configuration(self) -> None:
        lines = [
            *(self._tls_lines(self._tls) if self._tls else [f"listeners.tcp.1 = 127.0.0.1:{self.port}"]),
            # The server's own default is to hold half a gigabyte of quorum queues' log per node.
            "raft.wal_max_size_bytes = 67108864",
            "log.console = true",
            "log.file = false",
        ]
        if self.management_port:
            lines += [f"management.tcp.port = {self.management_port}", "management.tcp.ip = 127.0.0.1"]
        files = {"enabled_plugins": "[rabbitmq_management].\n" if self.management_port else "[].\n"}
        if self.definitions:
            lines += [f"load_definitions = {self.folder}/definitions.json"]
            files["definitions.json"] = json.dumps(self.definitions)
        for name, text in (files | {"rabbitmq.conf": "\n".join(lines) + "\n"}).items():
            (self.folder / name).touch(0o600)
            (self.folder / name).write_text(text)

    def _tls_lines(self, tls: Certificates) -> list[str]:
        return [
            "listeners.tcp = none",
            f"listeners.ssl.1 = 127.0.0.1:{self.port}",
            f"ssl_options.cacertfile = {tls.ca}",
            f"ssl_options.certfile = {tls.certificate('rabbitmq')}",
            f"ssl_options.keyfile = {tls.key('rabbitmq')}",
            # Clients show a password, no certificate.
            "ssl_options.verify = verify_none",
        ]

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return self.network.environment() | {
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/no-environment-file",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/no-advanced-file",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOG": "-color",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 2:2 +sbwt none +sbwtdio medium {LOOPBACK_ONLY}",
            "RABBITMQ_CTL_ERL_ARGS": LOOPBACK_ONLY,
            # It takes the first that is free, so these are none that `free_port` gives.
            "RABBITMQ_CTL_DIST_PORT_MIN": "15000",
            "RABBITMQ_CTL_DIST_PORT_MAX": str(PORTS.start - 1),
            # Makes the script become the server, so that the process that is signalled and killed is the server.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _serves_amqp(port: int, tls: Certificates | None) -> bool:
    # The first thing a server says is Connection.Start, a method frame (type 1) on channel 0.
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            if tls:
                connection = stack.enter_context(tls.client().wrap_socket(connection, server_hostname="127.0.0.1"))
            connection.sendall(AMQP_GREETING)
            return connection.recv(1) == b"\x01"
        except OSError:
            return False
