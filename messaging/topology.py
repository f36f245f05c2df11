"""The exchange and the queues, declared by the processes themselves."""

from aiormq.abc import AbstractChannel

from messaging.settings import BrokerSettings

TO_CONFIGURE_LIMIT = 10
"""How often a task may kill its reader before the broker dead-letters it."""
CONFIGURED_LIMIT = 100
"""The same for an outcome; more, since each loss of a channel counts for all that wait for the database on it."""


def dead_letter_queue(queue: str) -> str:
    """Name the queue that keeps what `queue`'s readers could not use."""
    return f"{queue}.dead"


async def declare(channel: AbstractChannel, settings: BrokerSettings) -> None:
    """Declare everything; declaring again what is there already changes nothing."""
    await channel.exchange_declare(settings.exchange, exchange_type="direct", durable=True)
    for queue, key, limit in (
        (settings.to_configure_queue, settings.to_configure_key, TO_CONFIGURE_LIMIT),
        (settings.configured_queue, settings.configured_key, CONFIGURED_LIMIT),
    ):
        dead = dead_letter_queue(queue)
        await channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_declare(
            queue,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": limit,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
            },
        )
        await channel.queue_bind(queue, settings.exchange, routing_key=key)
