"""What is done to a run, and when: all of it drawn from the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tests.chaos.nemeses import NEMESES
from tests.chaos.rig import WIRE
from tests.chaos.wire import Wire

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
    """Draw a run's windows. `rounds()` seeds in a row use every nemesis alone once; besides each run mixes some.

    With `chosen` nemeses a run uses just these, in this order; those joined by `+` work at once.
    """
    rng = random.Random(seed)
    if chosen:
        return [_window(rng, tuple(name.strip() for name in names.split("+"))) for names in chosen]
    deck = sorted(possible())
    random.Random(seed // rounds()).shuffle(deck)
    alone = deck[seed % rounds() :: rounds()]
    windows = [_window(rng, (name,)) for name in alone] + [_window(rng, _mix(rng)) for _ in range(MIXED)]
    rng.shuffle(windows)
    return windows


@cache
def possible() -> frozenset[str]:
    """The nemeses that this machine can be made to suffer: not everybody may make a wire."""
    return frozenset(name for name, nemesis in NEMESES.items() if WIRE not in nemesis.needs or Wire.can_be_made())


def rounds() -> int:
    """How many seeds in a row, from a multiple of this on, use every nemesis alone once."""
    return -(-len(possible()) // ALONE)


def needs(windows: Sequence[Window]) -> frozenset[str]:
    """Name what the rig must be made with."""
    return frozenset(need for window in windows for name in window.nemeses for need in NEMESES[name].needs)


def _window(rng: random.Random, names: tuple[str, ...]) -> Window:
    shortest = max(NEMESES[name].seconds[0] for name in names)
    longest = max(NEMESES[name].seconds[1] for name in names)
    if "pause a" in names:
        longest = NEMESES["pause a"].seconds[1]
    return Window(names, rng.uniform(min(shortest, longest), longest))


def _mix(rng: random.Random) -> tuple[str, ...]:
    areas = rng.sample(("process", "a", "broker", "database", "network"), rng.choice((2, 3)))
    return tuple(rng.choice(sorted(name for name in possible() if NEMESES[name].area == area)) for area in areas)
