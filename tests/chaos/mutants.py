"""Is the checker any good? One-line sabotages of the production code, each of which must be caught, by name."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import VIOLATIONS
from tests.chaos.former import TREE, former_tree
from tests.system.spawning import ROOT

TIMEOUT_SECONDS = 600
JOBS = 3
SKIPPED = shutil.ignore_patterns(".git", ".local", ".venv", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Faults that bring a kind of sabotage to light, as arguments of `python -m tests.chaos seed 1`.

    The untouched code must pass each of them: otherwise nothing was caught.
    """

    name: str
    nemeses: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mutant:
    """A sabotage: texts of a file, each of which must occur once, and what replaces them; what must be found then."""

    name: str
    file: str
    replacements: Sequence[tuple[str, str]]
    scenario: Scenario
    kinds: frozenset[str]
    also: tuple[str, tuple[str, str]] | None = None

    @property
    def places(self) -> list[tuple[str, tuple[str, str]]]:
        """Every replacement with its file."""
        return [(self.file, replacement) for replacement in self.replacements] + ([self.also] if self.also else [])


CALM = Scenario("calm", "poison", ("--seconds", "8"))
# Several times: the process must die while a batch waits for the database.
STORAGE = Scenario("storage fails, results die", ",".join(["kill database + kill results"] * 5), ("--once",))
COPIES = Scenario("copied outcomes", "a talks garbage + duplicate outcomes", ("--seconds", "8"))
LATE_COPIES = Scenario(
    "copied outcomes of calls that hang",
    "a hangs + duplicate outcomes,a hangs + duplicate outcomes",
    ("--seconds", "9"),
)
UNBOUND = Scenario("unbound queues", "unbind configured,unbind to_configure", ("--once", "--seconds", "3"))
KILLED = Scenario("killed configurators", "kill configurator,kill configurator,kill configurator")
DOUBLED_WORK = Scenario("copied work", "duplicate work", ("--seconds", "10"))
AWAY = Scenario("a is away", "a refuses,a refuses,a refuses,a refuses", ("--seconds", "5", "--rate", "160"))
A_CUT_OFF = Scenario("a cut off", "cut configurator-a,cut configurator-a,cut configurator-a,cut configurator-a")
PURGED = Scenario("purged queue", "purge to_configure,purge to_configure", ("--concurrency", "10"))
HASTY = Scenario("short deadlines", "a hangs", ("--seconds", "8", "--deadline", "2"))
HANGING = Scenario("a hangs", "a hangs", ("--seconds", "8"))
SILENT = Scenario("a silent network before a", ",".join(["black hole configurator-a"] * 3), ("--seconds", "7"))
WEB_DIES = Scenario("database and web die", "kill database,cut after commit web-database,kill web,kill database")

ASKED_TOGETHER = Scenario(
    "copied work, asked for together", "duplicate work + delay configurator-results", ("--seconds", "8")
)
FORGED_WORK = Scenario("forged work", "forged work", ("--seconds", "8"))
FORGED_OUTCOMES = Scenario("forged outcomes", "forged outcomes", ("--seconds", "8"))
OVERDUE = Scenario(
    "more work than slots, short deadlines", "poison", ("--seconds", "15", "--concurrency", "2", "--deadline", "3")
)
LATE_LEASES = Scenario("leases that come late", ",".join(["black hole configurator-results"] * 6), ("--seconds", "2"))
CLOCKS = Scenario("clocks", "clock an hour ahead,clock an hour back", ("--seconds", "8"))
# With a deadline that a jump does not pass: else no lease is granted.
AHEAD = Scenario("clocks ahead", ",".join(["clock an hour ahead"] * 2), ("--seconds", "6", "--deadline", "86400"))
LOCKED = Scenario("locked rows", ",".join(["locked rows"] * 5), ("--seconds", "8"))
DROPPED = Scenario("a drops calls", "a drops calls", ("--seconds", "8"))
FORMER = Scenario("a former configurator", "former configurator", ("--seconds", "5"))

LONG_JUMP = Scenario("a clock that stays wrong", "clock an hour ahead", ("--seconds", "45"))

FORGET = """    import random
    told = [found.get(id_) for id_ in ids]
    return [status and Status(status.equipment_id, random.choice((None, status.code))) for status in told]
"""

MUTANTS = (
    Mutant(
        "acknowledge before commit",
        "service_b/results/recorder.py",
        [
            (
                "        ends, unreadable = self._read(batch)\n",
                "        ends, unreadable = self._read(batch)\n        acknowledge(batch)\n",
            ),
            ("        acknowledge(delivery for delivery in batch if delivery.tag not in unsettled)\n", ""),
            ("            acknowledge([delivery])\n", ""),
        ],
        STORAGE,
        frozenset({"repeated"}),
    ),
    Mutant(
        "an error is not moved, only removed",
        "service_b/tasks/endings.py",
        [("    FROM gone\n", "    FROM gone WHERE code = 200\n")],
        COPIES,
        frozenset({"lost"}),
    ),
    Mutant(
        "no attempt guard",
        "service_b/tasks/outcomes.py",
        [("mine.attempt = change.attempt AND mine.lease = change.lease", "true")],
        LATE_COPIES,
        frozenset({"overlapping", "called after the end", "repeated"}),
    ),
    Mutant(
        "a lease for any attempt",
        "service_b/tasks/leases.py",
        [("WHEN mine.attempt <> asked.attempt THEN 'old'", "WHEN false THEN 'old'")],
        FORGED_WORK,
        frozenset({"without a lease"}),
    ),
    Mutant(
        "a lease for each who asks",
        "service_b/tasks/leases.py",
        [("WHEN mine.lease IS NOT NULL THEN 'taken'", "WHEN false THEN 'taken'")],
        DOUBLED_WORK,
        frozenset({"leased twice"}),
    ),
    Mutant(
        "a lease for both who ask at once",
        "service_b/tasks/leases.py",
        [("CASE WHEN begun.lease = asked.lease THEN 'granted' ELSE 'taken' END", "'granted'")],
        ASKED_TOGETHER,
        frozenset({"attempt called twice"}),
    ),
    Mutant(
        "a lease after the deadline",
        "service_b/tasks/leases.py",
        [("WHEN mine.expired THEN 'expired'", "WHEN false THEN 'expired'")],
        OVERDUE,
        frozenset({"after the deadline"}),
    ),
    Mutant(
        "a lease though the row is held",
        "service_b/results/leases.py",
        [('leases.Answer.HELD: b"null"', 'leases.Answer.HELD: b"true"')],
        LOCKED,
        frozenset({"without a lease"}),
    ),
    Mutant(
        "a call without a lease",
        "configurator/consumers.py",
        [
            (
                "        return answer is Answer.GRANTED\n",
                "        return True\n",
            )
        ],
        DOUBLED_WORK,
        frozenset({"attempt called twice"}),
    ),
    Mutant(
        "nobody is asked for a lease",
        "configurator/consumers.py",
        [("        if await self._may_begin(job):\n", "        job.asked_at = 1e9\n        if job:\n")],
        DOUBLED_WORK,
        frozenset({"without a lease"}),
    ),
    Mutant(
        "a lease is used however late it comes",
        "configurator/jobs.py",
        [("        return now() - self.asked_at > min(", "        return now() - self.asked_at > 1e9 + min(")],
        LATE_LEASES,
        frozenset({"stale lease"}),
    ),
    Mutant(
        "a call without a lease, of a former version",
        "service_b/relay.py",
        [("v=4 if dispatch.sealed_for else 3 if is_sealed(dispatch.parameters) else 2", "v=1")],
        FORMER,
        frozenset({"without a lease"}),
    ),
    Mutant(
        "an outcome under any lease",
        "service_b/tasks/outcomes.py",
        [(" AND mine.lease = change.lease", "")],
        FORGED_OUTCOMES,
        frozenset({"unfounded"}),
    ),
    Mutant(
        "a claim keeps the last lease",
        "service_b/tasks/claims.py",
        [("attempt = attempt + 1, lease = NULL,", "attempt = attempt + 1,")],
        DROPPED,
        frozenset({"lost"}),
    ),
    Mutant(
        "a call is lost before its time",
        "service_b/tasks/leases.py",
        [("MARGIN_SECONDS = 10\n", "MARGIN_SECONDS = -3\n")],
        HANGING,
        frozenset({"overlapping"}),
    ),
    Mutant(
        "lost calls are not found",
        "service_b/tasks/overdue.py",
        [("    FROM task WHERE {RUNNING} AND overdue_at", "    FROM task WHERE false AND {RUNNING} AND overdue_at")],
        KILLED,
        frozenset({"lost"}),
    ),
    Mutant(
        "lost dispatches are not found",
        "service_b/tasks/overdue.py",
        [("FROM task WHERE {DISPATCHED} AND", "FROM task WHERE false AND {DISPATCHED} AND")],
        PURGED,
        frozenset({"lost"}),
    ),
    Mutant(
        "outcomes wait for locked rows",
        "service_b/tasks/outcomes.py",
        [("OFFSET 0 FOR UPDATE SKIP LOCKED", "OFFSET 0 FOR UPDATE")],
        LOCKED,
        frozenset({"held up"}),
    ),
    Mutant(
        "leases wait for locked rows",
        "service_b/tasks/leases.py",
        [("OFFSET 0 FOR UPDATE SKIP LOCKED", "OFFSET 0 FOR UPDATE")],
        LOCKED,
        frozenset({"held up"}),
    ),
    Mutant(
        "a claim believes a clock that has jumped",
        "service_b/relay.py",
        [("latest = self._internal.at_most()", "latest = None")],
        AHEAD,
        frozenset({"overlapping"}),
    ),
    Mutant(
        "a deadline believes a clock that has jumped",
        "service_b/tasks/inserts.py",
        [('ACCEPTED = f"coalesce($8::timestamptz, greatest({NOW}, {LATELY}))"', "ACCEPTED = NOW")],
        CLOCKS,
        frozenset({"unfounded"}),
    ),
    Mutant(
        "a jump of the clock is not corrected",
        "service_b/maintenance/reconciler.py",
        [("if now and jump and self.leading and await", "if False and now and jump and self.leading and await")],
        LONG_JUMP,
        frozenset({"unfounded"}),
    ),
    Mutant(
        "what a jump misdated is not mended",
        "service_b/maintenance/reconciler.py",
        [("            await mending.mend(connection, now, self._jump)\n", "            pass\n")],
        CLOCKS,
        frozenset({"lost"}),
    ),
    Mutant(
        "no mandatory flag",
        "messaging/channel.py",
        [("mandatory=True)", "mandatory=False)")],
        UNBOUND,
        frozenset({"repeated", "lost"}),
    ),
    Mutant(
        "no unique index",
        "service_b/tasks/inserts.py",
        # Not removed, but of no effect: without it the insert would just fail. And nobody looks who is there already.
        [
            ("ON CONFLICT (equipment_id) WHERE", "ON CONFLICT (equipment_id, id) WHERE"),
            ("new.equipment_id AND active LIMIT 1) IS NULL", "new.equipment_id AND active LIMIT 1) IS NULL OR true"),
            (
                "new.equipment_id AND {WAITING} LIMIT 1) IS NULL",
                "new.equipment_id AND {WAITING} LIMIT 1) IS NULL OR true",
            ),
        ],
        AWAY,
        frozenset({"overlapping"}),
        also=(
            "db/migrations/20261123000000_create_task.sql",
            ("UNIQUE INDEX task_active ON task (equipment_id)", "UNIQUE INDEX task_active ON task (equipment_id, id)"),
        ),
    ),
    Mutant(
        "reconciler off",
        "service_b/maintenance/reconciler.py",
        [("await overdue.repeat_dispatches(connection, now, BATCH)", "[]")],
        PURGED,
        frozenset({"lost"}),
    ),
    Mutant(
        "promotion out of order",
        "service_b/tasks/promotion.py",
        [("ORDER BY seq LIMIT 1", "ORDER BY seq DESC LIMIT 1")],
        AWAY,
        frozenset({"order"}),
    ),
    Mutant(
        "running tasks expire",
        "service_b/tasks/states.py",
        [('NOT_BEGUN = "begun_at IS NULL"', 'NOT_BEGUN = "true"')],
        HASTY,
        frozenset({"overlapping"}),
    ),
    Mutant(
        "a device is not left alone after an unknown end",
        "configurator/service_a.py",
        [("        hold = max(0.0, job.seconds_left) if kind", "        hold = 0.0 if kind")],
        A_CUT_OFF,
        frozenset({"overlapping"}),
    ),
    Mutant(
        "a call that is given up is closed, not reset",
        "configurator/connections.py",
        [("        _set_linger(conn.transport, RESET)\n", "        _set_linger(conn.transport, CLOSE)\n")],
        SILENT,
        frozenset({"late"}),
    ),
    Mutant(
        "answered before it is stored",
        "service_b/submission.py",
        [
            (
                "_raise_if(await storage.ask(task, task.id))",
                "asyncio.ensure_future(storage.ask(task, task.id))",
            )
        ],
        WEB_DIES,
        frozenset({"lost"}),
    ),
    Mutant(
        "rubbish kills its reader",
        "configurator/consumers.py",
        [
            (
                "            self._spawn(self._dead_letter(delivery, error.reason))\n",
                "            raise RuntimeError from error\n",
            )
        ],
        CALM,
        frozenset({"bug"}),
    ),
    Mutant(
        "a device that A does not know counts as configured",
        "service_b/results/decision.py",
        [("    OutcomeKind.NOT_FOUND: 404,\n", "    OutcomeKind.NOT_FOUND: 200,\n")],
        CALM,
        frozenset({"unfounded"}),
    ),
    Mutant(
        "a cancel ends what has begun",
        "service_b/tasks/cancels.py",
        [("SELECT lease IS NOT NULL AS has_begun FROM task", "SELECT false AS has_begun FROM task")],
        CALM,
        frozenset({"begun after a cancel"}),
    ),
    Mutant(
        "what was taken back is tried again",
        "service_b/tasks/cancels.py",
        [
            (
                "deadline_at = least(deadline_at, {NOW}, $3::timestamptz)",
                "deadline_at = coalesce(deadline_at, $3::timestamptz)",
            )
        ],
        HANGING,
        frozenset({"begun after a cancel"}),
        also=("service_b/tasks/leases.py", ("cancel_requested OR deadline_at <=", "deadline_at <=")),
    ),
    Mutant(
        "every request has a key of its own",
        "service_b/tasks/keys.py",
        [("*given, [each.key for each in tasks],", "*given, [str(each.task.id) for each in tasks],")],
        CALM,
        frozenset({"key"}),
    ),
    Mutant(
        "who has waited is told what was seen before",
        "service_b/waits.py",
        [
            (
                "            self._remove(name, waiter)\n        return await look()",
                "            self._remove(name, waiter)\n        return seen",
            )
        ],
        CALM,
        frozenset({"wait"}),
    ),
    Mutant(
        "a status is forgotten now and then",
        "service_b/tasks/lookups.py",
        [("    return [found.get(id_) for id_ in ids]\n", FORGET)],
        CALM,
        frozenset({"going back"}),
    ),
)


def stale(tree: Path) -> list[str]:
    """Say which mutants are made for another code than this one."""
    return [
        f"{mutant.name}: {file} has {count} times {old.strip()!r}"
        for mutant in MUTANTS
        for file, (old, _) in mutant.places
        if (count := (tree / file).read_text().count(old)) != 1
    ]


def sabotage(tree: Path, mutant: Mutant) -> str:
    """Apply a mutant to a copy of the tree; say why it cannot be, if its text is not found exactly once."""
    for file, (old, new) in mutant.places:
        text = (tree / file).read_text()
        if text.count(old) != 1:
            return f"stale: {file} has {text.count(old)} times {old.strip()!r}"
        (tree / file).write_text(text.replace(old, new))
    return ""


def run(tree: Path, scenario: Scenario) -> dict[str, Any]:
    """Run a scenario with the code of a tree, and return the report."""
    report = tree / ".local" / "chaos.json"
    report.unlink(missing_ok=True)
    arguments = [sys.executable, "-m", "tests.chaos", "seed", "1", "--report", str(report)]
    if "--rate" not in scenario.options:
        arguments += ["--rate", "80"]
    arguments += ["--nemesis", scenario.nemeses, "--drain", "60", *scenario.options]
    done = subprocess.run(
        arguments,
        cwd=tree,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("histories"):
            shutil.rmtree(line.rpartition(" ")[2], ignore_errors=True)
    if not report.exists():
        raise RuntimeError(f"{scenario.name} did not run:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def copy_tree(folder: Path) -> Path:
    """Copy what is needed to run."""
    tree = Path(shutil.copytree(ROOT, folder / "tree", ignore=SKIPPED))
    # Where there is no repository to take it from.
    shutil.copytree(former_tree(), tree / TREE.relative_to(ROOT))
    return tree


def found(report: dict[str, Any]) -> dict[str, int]:
    """Which violations a report tells of."""
    return {kind: count for kind, count in report["sum"].items() if count and kind in VIOLATIONS}


def run_all(names: Sequence[str], console: Console, control: bool = True, jobs: int = JOBS) -> bool:
    """Run the scenarios on the untouched code, then each mutant; True when all were caught and nothing else."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    table = Table("mutant", "scenario", "found", "verdict", title="mutants")

    def judge(scenario: Scenario, mutant: Mutant | None) -> bool:
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            Path(folder).chmod(0o755)
            tree = copy_tree(Path(folder))
            said = sabotage(tree, mutant) if mutant else ""
            violations = {} if said else found(run(tree, scenario))
        verdict = not said and (bool(mutant.kinds & set(violations)) if mutant else not violations)
        said = said or str(violations or "nothing")
        name = mutant.name if mutant else "(none)"
        mark = "[green]as it should[/]" if verdict else "[red]NOT as it should[/]"
        console.print(f"{name} ({scenario.name}): {said}: {mark}")
        table.add_row(name, scenario.name, said, mark)
        return verdict

    work: list[tuple[Scenario, Mutant | None]] = [(mutant.scenario, mutant) for mutant in chosen]
    if control:
        work = [(scenario, None) for scenario in dict.fromkeys(mutant.scenario for mutant in chosen)] + work
    # They wait more than they work.
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = list(pool.map(lambda one: judge(*one), work))
    console.print(table)
    return all(verdicts)
