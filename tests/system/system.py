"""The whole system on one machine: both servers, the schema and the four processes."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from messaging.definitions import definitions, rights
from messaging.settings import BrokerSettings
from runtime.tls import server_context
from tests.system.certificates import SERVERS, Certificates
from tests.system.migrate import Roles, migrate, prepare
from tests.system.postgres import PostgreSQL
from tests.system.processes import Module, Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import is_port_free
from tests.system.tls_front import TlsFront


@dataclass(frozen=True)
class Plan:
    """What to start and where. A port that is None becomes a free one; a URL that is given replaces the private server.

    `service_a`, `service_b`, `results` and `configurator` are variables of these processes, beside what connects them.
    With `tls`, all of it but the management, the migrations and the watchers' ports speaks TLS.
    """

    amqp_url: str | None = None
    amqp_port: int | None = None
    management_port: int | None = None
    database_url: str | None = None
    database_port: int | None = None
    service_a: Mapping[str, str] | None = None
    service_b: Mapping[str, str] | None = None
    results: Mapping[str, str] | None = None
    configurator: Mapping[str, str] | None = None
    tls: bool = False


@dataclass(frozen=True)
class System:
    """The running system; the URLs are the administrator's."""

    amqp_url: str
    database_url: str
    service_a: Process
    service_b: Process
    results: Process
    configurator: Process
    ca: Path | None = None
    """Whose certificates the servers have, where they speak TLS."""

    @property
    def processes(self) -> tuple[Process, ...]:
        """The four, in the order in which they are started."""
        return self.service_a, self.service_b, self.results, self.configurator


@contextmanager
def running(folder: Path, plan: Plan, tell: Callable[[str], object] = str) -> Iterator[System]:
    """Run the system with its data and logs in `folder`, and stop all of it at the end; `tell` hears each step."""
    with ExitStack() as stack:
        amqp_url, database_url = plan.amqp_url, plan.database_url
        names = BrokerSettings.model_construct()
        certificates = Certificates(folder / "certificates") if plan.tls else None
        passwords = {user: secrets.token_urlsafe() for user in rights(names)} | {"guest": "guest"}
        if not database_url:
            tell("PostgreSQL")
            server = PostgreSQL(folder / "postgres", port=None if certificates else plan.database_port)
            database_url = stack.enter_context(server).dsn()
            tell("the roles and the schema")
            roles = Roles()
            prepare(database_url, roles)
            service_url = roles.service_url(database_url)
            if certificates:
                context = server_context(certificates.files("postgres"))
                front = stack.enter_context(TlsFront(context, server.port, port=plan.database_port))
                verified = {"sslmode": "verify-full", "sslrootcert": str(certificates.ca)}
                service_url = str(URL(service_url).with_port(front.port).update_query(verified))
        else:
            tell("the schema")
            migrate(database_url)
            service_url = database_url
        if not amqp_url:
            tell("RabbitMQ")
            node = RabbitMQ(
                folder / "rabbitmq",
                port=plan.amqp_port,
                management_port=plan.management_port,
                definitions=definitions(names, passwords),
                tls=certificates,
            )
            amqp_url = stack.enter_context(node).url

        def broker(user: str) -> dict[str, str]:
            url = amqp_url if plan.amqp_url else str(URL(amqp_url).with_user(user).with_password(passwords[user]))
            return {"AMQP_URL": url}

        def process(module: Module, own: Mapping[str, str] | None, **connections: str) -> Process:
            served = certificates.environment(module) if certificates and module in SERVERS else {}
            client = certificates.client() if certificates else None
            made = Process(module, folder / "logs", connections | served | dict(own or {}), client=client)
            stack.callback(made.close)
            made.start(wait=False)
            return made

        tell("the four processes")
        service_a = process("service_a", plan.service_a)
        database = {"DATABASE_URL": service_url}
        lease = {"LEASE_TOKEN": secrets.token_urlsafe()}
        results = process("service_b.results", plan.results, **broker("results"), **database, **lease)
        others = {"SERVICE_A_URL": service_a.url, "RESULTS_URL": results.url}
        if certificates:
            others["SERVICE_A_CA_FILE"] = str(certificates.ca)
        system = System(
            amqp_url=amqp_url,
            database_url=database_url,
            service_a=service_a,
            service_b=process("service_b", plan.service_b, **broker("web"), **database),
            results=results,
            configurator=process("configurator", plan.configurator, **broker("configurator"), **others, **lease),
            ca=certificates.ca if certificates else None,
        )
        for started in system.processes:
            started.wait_until_ready()
        stack.callback(tell, "stopping")
        yield system


def taken_ports(ports: Mapping[str, int]) -> list[str]:
    """One phrase for each port that somebody else listens on."""
    return [f"port {port} ({what}) is taken" for what, port in ports.items() if not is_port_free(port)]
