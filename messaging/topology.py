"""The exchanges and the queues: their names, arguments and bindings.

    EXCHANGE ──key──▶ queue ──▶ its reader
                        │ delivered too often           cannot be used │
                        └──────────▶ EXCHANGE.dead ◀───────────────────┘
                                          └──▶ queue.dead, bounded in length and age

Twice over: for TO_CONFIGURE_QUEUE and for CONFIGURED_QUEUE.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from messaging.settings import BrokerSettings

TO_CONFIGURE_LIMIT = 10
"""How often a task may kill its reader before the broker dead-letters it."""
CONFIGURED_LIMIT = 100
"""The same for an outcome; more, since each loss of a channel counts for all that wait for the database on it."""
DEAD_LETTERS = 10_000
"""How many dead letters a queue keeps; the oldest make room."""
DEAD_LETTER_DAYS = 14

Arguments = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable direct exchange. `variable`: the setting that names it."""

    name: str
    variable: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue and its binding.

    `earlier`: what a former version of ours declared it with, which works as well, but for what `lacking` says.
    `variable`: the setting that names it.
    """

    name: str
    exchange: str
    key: str
    arguments: Arguments
    earlier: Arguments
    lacking: str
    variable: str


def dead_letter_queue(queue: str) -> str:
    """Name the queue that keeps what `queue`'s readers could not use."""
    return f"{queue}.dead"


def dead_letter_exchange(exchange: str) -> str:
    """Name the exchange that leads to the dead-letter queues, each by its own name.

    Not the broker's default one: a user who may write to that may write to every queue.
    """
    return f"{exchange}.dead"


def exchanges(settings: BrokerSettings) -> list[Exchange]:
    """Name the exchanges."""
    names = settings.exchange, dead_letter_exchange(settings.exchange)
    return [Exchange(name, "EXCHANGE") for name in names]


def queues(settings: BrokerSettings) -> list[Queue]:
    """Describe the queues, each dead-letter queue before the queue that needs it."""
    dead_exchange = dead_letter_exchange(settings.exchange)
    described = []
    for variable, queue, key, limit in (
        ("TO_CONFIGURE_QUEUE", settings.to_configure_queue, settings.to_configure_key, TO_CONFIGURE_LIMIT),
        ("CONFIGURED_QUEUE", settings.configured_queue, settings.configured_key, CONFIGURED_LIMIT),
    ):
        dead = dead_letter_queue(queue)
        quorum: Arguments = {"x-queue-type": "quorum"}
        bounds: Arguments = {
            "x-max-length": DEAD_LETTERS,
            "x-message-ttl": DEAD_LETTER_DAYS * 86_400_000,
            "x-overflow": "drop-head",
        }
        limited: Arguments = {**quorum, "x-delivery-limit": limit, "x-dead-letter-routing-key": dead}
        described += [
            Queue(dead, dead_exchange, dead, {**quorum, **bounds}, quorum, "grows without bound", variable),
            Queue(
                queue,
                settings.exchange,
                key,
                {**limited, "x-dead-letter-exchange": dead_exchange},
                {**limited, "x-dead-letter-exchange": ""},
                "",
                variable,
            ),
        ]
    return described
