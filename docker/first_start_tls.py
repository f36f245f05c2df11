"""`python -m docker.first_start_tls`: what `compose.tls.yaml` needs at its first start, the passwords included.

Beside its passwords, each service finds in its folder the CA, its certificate and its key if it is a server, and the
URLs of the servers that it uses: only a URL says how somebody is verified.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from docker import first_start
from docker.certificates import HERE, Authority, write
from docker.first_start import APP, HANDED_OUT, KEPT, SERVER, VOLUME

SERVERS = {"postgres": SERVER, "rabbitmq": SERVER, "service_a": APP, "service_b": APP}
USERS = {"service_b": "web", "service_b_results": "results", "configurator": "configurator"}
"""Who uses the broker as whom."""
CA = "/run/secrets/ca.pem"


def hand_out(
    volume: Path,
    names: Sequence[str],
    role: str = "service",
    database: str = "test",
    chown: Callable[[Path, int, int], None] = os.chown,
) -> None:
    """Make what is not there yet. `names`: what else the servers are called, by those who come from outside."""
    authority = Authority(volume / KEPT, chown)
    for service in {**HANDED_OUT, **SERVERS}:
        folder = volume / service
        folder.mkdir(0o755, exist_ok=True)
        authority.tell(folder)
    for service, owner in SERVERS.items():
        authority.issue(volume / service, (service, *HERE, *names), owner)

    def secret(name: str) -> str:
        return (volume / KEPT / name).read_text()

    def give(file: Path) -> None:
        chown(file, APP, APP)

    for service, user in USERS.items():
        url = f"amqps://{user}:{secret(user)}@rabbitmq:5671/?cafile={CA}"
        write(volume / service / "amqp_url", url.encode(), 0o400, give)
    for service in ("service_b", "service_b_results"):
        url = f"postgresql://{role}:{secret('service')}@postgres:5432/{database}?sslmode=verify-full&sslrootcert={CA}"
        write(volume / service / "database_url", url.encode(), 0o400, give)


def main() -> None:
    """Do it for compose.tls.yaml."""
    first_start.main()
    names = [name.strip() for name in os.environ["TLS_NAMES"].split(",") if name.strip()]
    hand_out(VOLUME, names, os.environ["POSTGRES_USER"], os.environ["POSTGRES_DB"])


if __name__ == "__main__":
    main()
