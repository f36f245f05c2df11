"""How long a session waits for what."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds; a test that wants to see one of them end makes it short."""

    connect: float = 10.0
    """To connect, and to find or make the topology."""
    answer: float = 10.0
    """For the broker's answer to a question (a subscription, a declaration, a count), while nothing comes of it."""
    confirm: float | None = None
    """For the next confirm of what is published; None: as for a connection that is silent (`BrokerSettings`)."""
    close: float = 5.0
    """For the broker's word that a connection is closed."""
    idle: float = 4.0
    """A subscription that has brought nothing between two looks, so many seconds apart, is begun anew."""
