"""What is done to a run, and when: all of it drawn from the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.nemeses import NEMESES

ALONE = 6
MIXED = 2


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which these nemeses work at once."""

    nemeses: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        """What its row of the report is called."""
        return self.nemeses[0] if len(self.nemeses) == 1 else "mixed"


def draw(seed: int, chosen: Sequence[str] = ()) -> list[Window]:
    """Draw a run's windows. Some seeds in a row use every nemesis alone once; besides each run mixes some.

    With `chosen` nemeses a run uses just these, in this order; those joined by `+` work at once.
    """
    rng = random.Random(seed)
    if chosen:
        return [_window(rng, tuple(name.strip() for name in names.split("+"))) for names in chosen]
    rounds = -(-len(NEMESES) // ALONE)
    deck = sorted(NEMESES)
    random.Random(seed // rounds).shuffle(deck)
    alone = deck[seed % rounds :: rounds]
    windows = [_window(rng, (name,)) for name in alone] + [_window(rng, _mix(rng)) for _ in range(MIXED)]
    rng.shuffle(windows)
    return windows


def links(windows: Sequence[Window]) -> frozenset[str]:
    """Name the links that must lead over a proxy."""
    return frozenset(link for window in windows for name in window.nemeses for link in NEMESES[name].links)


def _window(rng: random.Random, names: tuple[str, ...]) -> Window:
    shortest = max(NEMESES[name].seconds[0] for name in names)
    longest = max(NEMESES[name].seconds[1] for name in names)
    if "pause a" in names:
        longest = NEMESES["pause a"].seconds[1]
    return Window(names, rng.uniform(min(shortest, longest), longest))


def _mix(rng: random.Random) -> tuple[str, ...]:
    areas = rng.sample(("process", "a", "broker", "database", "network"), rng.choice((2, 3)))
    return tuple(rng.choice([n.name for n in NEMESES.values() if n.area == area]) for area in areas)
