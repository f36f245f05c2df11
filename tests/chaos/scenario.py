"""One run: start the system, let the clients work while the windows pass, heal, drain, and let the checker judge."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos import transitions
from tests.chaos.checker import PATIENCE_SECONDS, Verdict, check
from tests.chaos.history import Event, History, read
from tests.chaos.nemeses import NEMESES, Nemesis
from tests.chaos.plan import Window
from tests.chaos.rig import LIMIT_SECONDS, Rig, until
from tests.chaos.workload import Workload

WARM_UP_SECONDS = 2.0
CALM_SECONDS = 2.0
RECOVERY_LIMIT_SECONDS = 60.0
DRAIN_SECONDS = 150.0
READ_AGAIN = 1000

Tell = Callable[[str], object]


@dataclass(slots=True)
class Passed:
    """A window that has passed, in the history's seconds. `recovery`: from healed to the next final status."""

    name: str
    nemeses: tuple[str, ...]
    began: float
    healed: float
    ended: float
    recovery: float | None
    error: str = ""


@dataclass(slots=True)
class Run:
    """What a run gave."""

    seed: int
    folder: Path
    passed: list[Passed] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0
    drained: bool = False
    drain_seconds: float = 0

    def as_json(self) -> dict[str, Any]:
        """What is written to a report."""
        return asdict(self) | {"folder": str(self.folder)}


async def perform(
    rig: Rig,
    seed: int,
    windows: Sequence[Window],
    *,
    rate: float,
    nemeses: Mapping[str, Nemesis] = NEMESES,
    once: bool = False,
    patience: float = PATIENCE_SECONDS,
    drain_seconds: float = DRAIN_SECONDS,
    tell: Tell = str,
) -> Run:
    """Perform a run on a rig that is not started yet; the rig is stopped at the end.

    `once`: these faults excuse no call after A's answer. `patience`: see the checker. `drain_seconds`: how long the
    last tasks get to end.
    """
    run = Run(seed, rig.folder)
    started = time.monotonic()
    history = rig.history
    limits = {"limit": LIMIT_SECONDS, "deadline": rig.shape.deadline_seconds, "patience": patience}
    history.write("run", seed=seed, once=once, windows=[asdict(window) for window in windows], **limits)
    async with rig, _clients(rig, seed, rate) as workload:
        working = asyncio.create_task(workload.run())
        watching = asyncio.create_task(_watch_backlog(rig, workload))
        await asyncio.sleep(WARM_UP_SECONDS)
        rng = random.Random(seed)
        for window in windows:
            run.passed.append(await _pass(rig, window, nemeses, rng, tell))
        await rig.restore()
        healed = time.monotonic()
        await workload.stop()
        await working
        watching.cancel()
        run.drained = await until(lambda: _drained(rig), drain_seconds)
        run.drain_seconds = time.monotonic() - healed
        history.write("drained", drained=run.drained, seconds=run.drain_seconds)
        await workload.look_again(READ_AGAIN)
        for name, code in (await asyncio.to_thread(rig.exit_codes)).items():
            history.write("exit", name=name, code=code)
        async with rig.admin() as connection:
            await transitions.dump(connection, history, time.monotonic())
        _look_for_bugs(rig.folder / "logs", history)
    run.verdict = await asyncio.to_thread(lambda: check(read(rig.folder)))
    run.seconds = time.monotonic() - started
    (rig.folder / "run.json").write_text(json.dumps(run.as_json(), indent=1))
    return run


@asynccontextmanager
async def _clients(rig: Rig, seed: int, rate: float) -> AsyncIterator[Workload]:
    with History(rig.folder / "clients.jsonl") as history:
        workload = Workload([process.url for process in rig.processes["web"]], history, seed, rate)
        try:
            yield workload
        finally:
            await workload.close()


async def _watch_backlog(rig: Rig, workload: Workload) -> None:
    while True:
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with rig.admin() as connection:
                while True:
                    workload.note_backlog(await transitions.unfinished(connection))
                    await asyncio.sleep(0.5)


async def _pass(rig: Rig, window: Window, nemeses: Mapping[str, Nemesis], rng: random.Random, tell: Tell) -> Passed:
    """Do harm, heal, and wait until the system has come back to work."""
    began = time.monotonic()
    rig.history.write("window", name=window.name, nemeses=window.nemeses)
    error = ""
    try:
        async with AsyncExitStack() as stack:
            for name in window.nemeses:
                await stack.enter_async_context(nemeses[name].fault(rig, rng))
            rig.history.write("injected", nemeses=window.nemeses)
            await asyncio.sleep(window.seconds)
    except Exception as failed:  # noqa: BLE001 - mixed, one nemesis may be in another's way; it is told below.
        error = repr(failed)
        await rig.restore()
    healed = time.monotonic()
    rig.history.write("healed", nemeses=window.nemeses, error=error)
    recovery = await _recovery(rig, healed)
    tell(
        f"{' + '.join(window.nemeses)}: {window.seconds:.1f} s of harm, "
        f"{'no recovery' if recovery is None else f'recovered after {recovery:.1f} s'} {error}"
    )
    await asyncio.sleep(CALM_SECONDS)
    return Passed(window.name, window.nemeses, began, healed, time.monotonic(), recovery, error)


async def _recovery(rig: Rig, healed: float) -> float | None:
    """Wait for the first new final status, and tell how long that took."""

    async def recovered() -> float | None:
        async with rig.admin() as connection:
            before = await transitions.last(connection)
            while not await transitions.any_final_after(connection, before):
                if time.monotonic() > healed + RECOVERY_LIMIT_SECONDS:
                    return None
                await asyncio.sleep(0.05)
        return time.monotonic() - healed

    while True:
        try:
            return await recovered()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await asyncio.sleep(0.1)


async def _drained(rig: Rig) -> bool:
    async with rig.admin() as connection:
        return await transitions.unfinished(connection) == 0


def _look_for_bugs(logs: Path, history: History) -> None:
    """A process that meets the unforeseen says so at level error, in an event that ends in `.bug`, or dies of it."""
    for path in sorted(logs.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if '.bug"' in line or line.startswith("Traceback"):
                history.write("bug", line=f"{path.stem}: {line}")


def window_at(run: Run, at: float) -> Passed | None:
    """Tell which window a moment belongs to: the last that had begun, else the first."""
    begun = [passed for passed in run.passed if passed.began <= at]
    return begun[-1] if begun else (run.passed[0] if run.passed else None)


def accepted_events(run: Run) -> list[Event]:
    """List the acknowledgements of a run, the first of each task."""
    told = [event for event in read(run.folder) if event["kind"] == "submitted" and event["status"] == 200]
    return list({event["task"]: event for event in reversed(told)}.values())
