"""The exchange and the queues, declared by the processes themselves."""

from aiormq.abc import AbstractChannel

from messaging.settings import BrokerSettings

DELIVERY_LIMIT = 10
"""How often a message may kill its reader before the broker dead-letters it."""


def dead_letter_queue(queue: str) -> str:
    """Name the queue that keeps what `queue`'s readers could not use."""
    return f"{queue}.dead"


async def declare(channel: AbstractChannel, settings: BrokerSettings) -> None:
    """Declare everything; declaring again what is there already changes nothing."""
    await channel.exchange_declare(settings.exchange, exchange_type="direct", durable=True)
    for queue, key in (
        (settings.to_configure_queue, settings.to_configure_key),
        (settings.configured_queue, settings.configured_key),
    ):
        dead = dead_letter_queue(queue)
        await channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_declare(
            queue,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
            },
        )
        await channel.queue_bind(queue, settings.exchange, routing_key=key)
