"""What a broker is told before our processes come: who they are, what each may do, the exchanges and the queues.

RabbitMQ reads it when it starts (`load_definitions`), so that no process of ours needs the right to make anything.
Source: https://www.rabbitmq.com/docs/definitions
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from messaging.settings import BrokerSettings
from messaging.topology import dead_letter_exchange, exchanges, queues

VHOST = "/"


class Rights(NamedTuple):
    """What a user may do: regular expressions of names, as RabbitMQ has them."""

    configure: str
    write: str
    read: str


def rights(settings: BrokerSettings) -> dict[str, Rights]:
    """Tell what the user of each process needs where everything is there already; the README's table.

    To dead-letter is to publish to an exchange of ours. Since RabbitMQ 4.3.1 a queue's depth is told only to who has
    any right to it; to write to a queue is to bind it, for which the exchange must be read, too.
    """
    exchange, dead = settings.exchange, dead_letter_exchange(settings.exchange)
    return {
        "web": Rights(_only(), _only(exchange, settings.to_configure_queue), _only()),
        "results": Rights(_only(), _only(dead), _only(settings.configured_queue)),
        "configurator": Rights(_only(), _only(exchange, dead), _only(settings.to_configure_queue)),
    }


def definitions(settings: BrokerSettings, passwords: Mapping[str, str]) -> dict[str, Any]:
    """Describe the whole broker as JSON that holds no password; a user that is no process's is an administrator."""
    processes, everything = rights(settings), Rights(".*", ".*", ".*")
    described = queues(settings)
    return {
        "users": [
            {
                "name": user,
                "password_hash": _hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [] if user in processes else ["administrator"],
            }
            for user, password in passwords.items()
        ],
        "vhosts": [{"name": VHOST}],
        "permissions": [
            {"user": user, "vhost": VHOST, **processes.get(user, everything)._asdict()} for user in passwords
        ],
        "exchanges": [
            {"name": exchange.name, "vhost": VHOST, "type": "direct", "durable": True, "auto_delete": False}
            | {"internal": False, "arguments": {}}
            for exchange in exchanges(settings)
        ],
        "queues": [
            {"name": queue.name, "vhost": VHOST, "durable": True, "auto_delete": False}
            | {"arguments": dict(queue.arguments)}
            for queue in described
        ],
        "bindings": [
            {"source": queue.exchange, "vhost": VHOST, "destination": queue.name, "destination_type": "queue"}
            | {"routing_key": queue.key, "arguments": {}}
            for queue in described
        ],
    }


def _only(*names: str) -> str:
    return f"^({'|'.join(map(re.escape, names))})$" if names else "^$"


def _hash(password: str) -> str:
    """Salt and hash it as https://www.rabbitmq.com/docs/passwords says."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
