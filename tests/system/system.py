"""The whole system on one machine: both servers, the schema and the four processes."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from messaging.definitions import definitions, rights
from messaging.settings import BrokerSettings
from tests.system.migrate import Roles, migrate, prepare
from tests.system.postgres import PostgreSQL
from tests.system.processes import Module, Process
from tests.system.rabbitmq import RabbitMQ
from tests.system.spawning import is_port_free


@dataclass(frozen=True)
class Plan:
    """What to start and where. A port that is None becomes a free one; a URL that is given replaces the private server.

    `service_a`, `service_b`, `results` and `configurator` are variables of these processes, beside what connects them.
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


@dataclass(frozen=True)
class System:
    """The running system; the URLs are the administrator's."""

    amqp_url: str
    database_url: str
    service_a: Process
    service_b: Process
    results: Process
    configurator: Process

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
        passwords = {user: secrets.token_urlsafe() for user in rights(names)} | {"guest": "guest"}
        if not database_url:
            tell("PostgreSQL")
            database_url = stack.enter_context(PostgreSQL(folder / "postgres", port=plan.database_port)).dsn()
            tell("the roles and the schema")
            roles = Roles()
            prepare(database_url, roles)
            service_url = roles.service_url(database_url)
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
            )
            amqp_url = stack.enter_context(node).url

        def broker(user: str) -> dict[str, str]:
            url = amqp_url if plan.amqp_url else str(URL(amqp_url).with_user(user).with_password(passwords[user]))
            return {"AMQP_URL": url}

        def process(module: Module, own: Mapping[str, str] | None, **connections: str) -> Process:
            made = Process(module, folder / "logs", connections | dict(own or {}))
            stack.callback(made.close)
            made.start(wait=False)
            return made

        tell("the four processes")
        service_a = process("service_a", plan.service_a)
        database = {"DATABASE_URL": service_url}
        results = process("service_b.results", plan.results, **broker("results"), **database)
        others = {"SERVICE_A_URL": service_a.url, "RESULTS_URL": results.url}
        system = System(
            amqp_url=amqp_url,
            database_url=database_url,
            service_a=service_a,
            service_b=process("service_b", plan.service_b, **broker("web"), **database),
            results=results,
            configurator=process("configurator", plan.configurator, **broker("configurator"), **others),
        )
        for started in system.processes:
            started.wait_until_ready()
        stack.callback(tell, "stopping")
        yield system


def taken_ports(ports: Mapping[str, int]) -> list[str]:
    """One phrase for each port that somebody else listens on."""
    return [f"port {port} ({what}) is taken" for what, port in ports.items() if not is_port_free(port)]
