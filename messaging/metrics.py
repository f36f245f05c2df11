"""What the AMQP session and the batchers count."""

from prometheus_client import Counter, Histogram

CONNECTS = Counter("amqp_connects", "AMQP channels opened, the first one included")
UNCONFIRMED = Counter("amqp_unconfirmed", "Messages published whose confirm never came")
DEAD_LETTERS = Counter("amqp_dead_letters", "Messages that a reader could not use", ["queue"])
BATCH_SIZE = Histogram(
    "batch_size", "Items per flush", ["batch"], buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
)
