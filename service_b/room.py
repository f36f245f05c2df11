"""How much the queue `to_configure` has room for: what the configurators will begin in about two seconds."""

from math import exp

LEAST, MOST = 32, 4000
"""Messages. The queue may hold 5,000: several relays may claim at the same moment, a batch each."""
AHEAD_SECONDS = 2.0
MEMORY_SECONDS = 8.0
"""The rate is of about that long. With less the queue grows faster, and the work of a short burst fills it for longer.

How fast it grows: what is taken makes room for a quarter more, and that for more again, until it is what is taken in
two seconds. So many calls that begin at once, and then none for a minute, leave no more than a quarter of as many.
"""


class Room:
    """Learns how fast calls begin, by any configurator and from any relay's messages, from a number that counts them.

    Relays share the queue without agreement: each sees what all of them have put there. Whatever lies there that no
    relay counts as dispatched (copies, messages given up for lost) takes room, too.
    """

    def __init__(self) -> None:
        # Calls begun a second.
        self._rate = 0.0
        # The last look: when, and how many calls had begun by then.
        self._at = 0.0
        self._begun: int | None = None
        # How many will have begun when all messages that were ready are gone.
        self._emptied_at = 0

    def look(self, now: float, *, dispatched: int, begun: int, ready: int | None = None) -> int:
        """Tell how many messages there is room for, not more than none if less than 1.

        `now` is in seconds of any clock; `dispatched` counts the tasks that are under way to a call, `begun` the calls
        that ever began, `ready` the messages in the queue: None when it is not known anew.
        """
        if self._begun is not None:
            passed = max(now - self._at, 0.001)
            kept = exp(-passed / MEMORY_SECONDS)
            self._rate = self._rate * kept + max(0, begun - self._begun) / passed * (1 - kept)
        self._at, self._begun = now, begun
        if ready is not None:
            self._emptied_at = begun + ready
        target = min(max(LEAST, round(AHEAD_SECONDS * self._rate)), MOST)
        return target - max(dispatched, self._emptied_at - begun)
