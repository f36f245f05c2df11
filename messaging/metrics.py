"""What the AMQP session counts."""

from prometheus_client import Counter

CONNECTS = Counter("amqp_connects", "AMQP channels opened, the first one included")
UNCONFIRMED = Counter("amqp_unconfirmed", "Messages published whose confirm never came")
DEAD_LETTERS = Counter("amqp_dead_letters", "Messages that a reader could not use", ["queue"])
