"""What must be shown: ratios of figures, each against its limit."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

Figures = Mapping[str, float]

PATH_PIECES = {
    "handler": 1,
    "insert": 1,
    "claim": 1,
    "publish": 2,  # the task to the configurator, the outcome back
    "consume": 1,
    "ask": 1,  # for the lease, a share of a request
    "lease": 1,  # its statement
    "call": 1,
    "consume many": 1,
    "move": 1,
}
"""The bare pieces of which one task's way is made, from POST to final status."""

ACCEPT_PIECES = ("handler", "insert", "publish")


@dataclass(frozen=True)
class Ratio:
    """One thing that must be shown: `value` of the figures against a limit."""

    title: str
    value: Callable[[Figures], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def judge(self, rounds: Sequence[Figures]) -> tuple[float, bool] | None:
        """Tell the median of all rounds and whether it will do; None when what it needs was not measured."""
        values = []
        for figures in rounds:
            with suppress(KeyError):
                values.append(self.value(figures))
        if not values:
            return None
        value = statistics.median(values)
        enough = self.at_least is None or value >= self.at_least
        return value, enough and (self.at_most is None or value <= self.at_most)


def path_cost(figures: Figures) -> float:
    """Sum the CPU µs of a task's pieces, our processes and both servers together."""
    return sum(
        times * (figures[f"floor.{piece}.own"] + figures.get(f"floor.{piece}.server", 0.0))
        for piece, times in PATH_PIECES.items()
    )


def ideal_path_rate(figures: Figures) -> float:
    """Tasks a second when every core of the machine does nothing but the pieces."""
    return 1e6 * figures["machine.cores"] / path_cost(figures)


def ideal_accept_rate(figures: Figures) -> float:
    """Tasks a second when one process does nothing but the pieces of accepting."""
    return 1e6 / sum(figures[f"floor.{piece}.own"] for piece in ACCEPT_PIECES)


def growth_ratio(state: str, rate: str) -> Ratio:
    """A rate with a grown table as a share of the rate with an empty one, measured in turn with it."""
    name = f"growth.{state}.{rate}"
    return Ratio(f"growth, {state}, {rate} / empty table", lambda f: f[name] / f[f"{name}, empty table"], at_least=0.95)


def down_ratio(connections: int, at_least: float | None = None) -> Ratio:
    """The rate of accepting with the broker down as a share of the bare handler's, measured right before it."""
    name = f"accept.no broker.{connections}"
    return Ratio(
        f"accept, broker down / bare handler, {connections} connections",
        lambda f: f[f"{name}.rate"] / f[f"{name}.bare handler"],
        at_least,
    )


def backlog_ratios(due: int) -> tuple[Ratio, Ratio]:
    """What lies in the queue while so many tasks are due, and how busy the slots are."""
    name = f"backlog.{due}"
    return (
        Ratio(f"{due:,} due, most messages in the queue", lambda f: f[f"{name}.ready, most"], at_most=5000),
        Ratio(f"{due:,} due, slots' occupancy", lambda f: f[f"{name}.occupancy"], at_least=0.97),
    )


def flat(section: str, what: str) -> Callable[[Figures], float]:
    """How much more it is in the last third of an hour than in the third before."""
    return lambda f: f[f"{section}.last.{what}"] / f[f"{section}.before.{what}"]


def plans_ratio(figures: Figures) -> float:
    """The slowest path as a share of the fastest, each under statistics of another state of the table."""
    rates = [figures[f"plans.{state}.rate"] for state in ("empty", "all pending", "all finished")]
    return min(rates) / max(rates)


def list_ratio(name: str, page: str) -> Ratio:
    """How long a page of a list takes among ten million finished tasks."""
    return Ratio(f"lists, {name}, {page}", lambda f: f[f"lists.{name}.{page}"], at_most=50, unit="ms")


def guard_ratios(kind: str, at_most: float) -> tuple[Ratio, ...]:
    """What a task costs, by CPU time, with one of the guards on, as a multiple of that with none."""
    return tuple(
        Ratio(
            f"{kind}, CPU a task / without, {way}",
            lambda f, way=way: f[f"guards.{kind}.{way}.total"] / f[f"guards.none.{way}.total"],  # type: ignore[misc]
            at_most=at_most,
        )
        for way in ("accept", "path")
    )


AIMS = (
    Ratio("accept, relay included / ideal", lambda f: f["accept.64.rate"] / ideal_accept_rate(f), at_least=0.75),
    Ratio("accept, p99 / median, 64 connections", lambda f: f["accept.64.p99"] / f["accept.64.p50"], at_most=3),
    down_ratio(512, at_least=0.75),
    Ratio(
        "status, finished / bare handler", lambda f: f["status.finished.rate"] / f["status.bare handler"], at_least=0.8
    ),
    Ratio(
        "status, unfinished / bare handler",
        lambda f: f["status.unfinished.rate"] / f["status.bare handler"],
        at_least=0.6,
    ),
    Ratio("path / ideal", lambda f: f["path.rate"] / ideal_path_rate(f), at_least=0.85),
    Ratio(
        "path, CPU a task / that of the former commit",
        lambda f: f["paired.path.now.total"] / f["paired.path.former.total"],
        at_most=1.1,
    ),
    Ratio(
        "accept, CPU a task / that of the former commit",
        lambda f: f["paired.accept.now.total"] / f["paired.accept.former.total"],
        at_most=1.1,
    ),
    Ratio("slots, makespan less A's delay", lambda f: f["slots.makespan"] - f["slots.delay"], at_most=5, unit="s"),
    Ratio("slots, occupancy", lambda f: f["slots.occupancy"], at_least=0.97),
    Ratio("slots, memory of one", lambda f: f["slots.kib"], at_most=40, unit="KiB"),
    Ratio("waits, memory of one", lambda f: f["waits.kib"], at_most=40, unit="KiB"),
    Ratio("waits, from a task's end to its client, longest", lambda f: f["waits.longest"], at_most=1, unit="s"),
    Ratio("bulk, memory of a hundred thousand lines", lambda f: f["bulk.growth"], at_most=30, unit="MiB"),
    Ratio(
        "bulk, from a single POST to its dispatch, longest",
        lambda f: f["bulk.single dispatched after"],
        at_most=2,
        unit="s",
    ),
    Ratio("slots, added latency, p99", lambda f: f["slots.added p99"], at_most=1, unit="s"),
    Ratio(
        "configurator, a task's cost with ten times the slots",
        lambda f: f["wide.many.configurator"] / f["wide.few.configurator"],
        at_most=1.15,
    ),
    *(aim for due in (10_000, 100_000) for aim in backlog_ratios(due)),
    *(
        growth_ratio(state, rate)
        for state in ("pending", "finished", "one device")
        for rate in ("accept", "status unfinished", "path")
    ),
    growth_ratio("finished", "status finished"),
    *(
        list_ratio(name, page)
        for name in ("all", "succeeded", "failed", "external id")
        for page in ("first page", "page 1,000")
    ),
    Ratio("a day dropped, duration", lambda f: f["drop.seconds, worst"], at_most=1, unit="s"),
    Ratio(
        "a day dropped, POST's longest less that without",
        lambda f: f["drop.POST's longest, a day dropped"] - f["drop.POST's longest, none dropped"],
        at_most=100,
        unit="ms",
    ),
    *(
        Ratio(f"{title}, {what}, last third / the one before", flat(section, what), at_most=at_most)
        for title, section, what, at_most in (
            ("an hour's load", "hour", "task table", 1.1),
            ("an hour's load", "hour", "entries", 1.2),
            ("an hour's snapshot", "snapshot", "entries", 1.2),
            ("an hour's snapshot", "snapshot", "postgresql", 1.2),
        )
    ),
    Ratio("path, slowest / fastest under stale statistics", plans_ratio, at_least=0.85),
    Ratio("path, a row locked / none", lambda f: f["locked.path"] / f["locked.path, no lock"], at_least=0.85),
    Ratio(
        "POST's median, 32 scrapers / none",
        lambda f: f["scrapers.POST p50"] / f["scrapers.POST p50, none"],
        at_most=2,
    ),
    *(aim for kind, most in (("tls", 1.25), ("tokens", 1.03), ("sealing", 1.05)) for aim in guard_ratios(kind, most)),
    Ratio("idle, share of one core", lambda f: f["idle.total"], at_most=0.01),
)
"""Of each, the median of the rounds counts: machines differ from minute to minute, too."""

HINTS = (
    # A closed loop: half of so few clients wait for a commit at any time, and the others cannot fill the process.
    down_ratio(64),
    Ratio(
        "accept, CPU of the pieces / CPU of the web process",
        lambda f: 1e6 / ideal_accept_rate(f) / f["accept.64.service_b"],
    ),
    Ratio("path, CPU of the pieces / CPU of everything", lambda f: path_cost(f) / f["path.total"]),
    Ratio(
        "load generator's ceiling / fastest thing measured",
        lambda f: f["floor.generator.rate"] / f["floor.handler.rate"],
    ),
)
"""Without a bar: the same by CPU time, which a busy machine disturbs less; was the load generator in the way?"""
