"""A short selection of chaos for every run of the tests: one seed, some faults, the whole judgement."""

from pathlib import Path

import pytest
import uvloop

from tests.chaos import mutants, plan
from tests.chaos.rig import Rig
from tests.chaos.scenario import perform
from tests.system.spawning import ROOT

SELECTION = ("cut after commit web-database + kill configurator", "close connections")


def test_promise_holds_under_a_selection_of_faults(tmp_path: Path) -> None:
    windows = plan.draw(1, SELECTION)
    run = uvloop.run(perform(Rig(tmp_path, plan.needs(windows)), 1, windows, rate=30))
    assert run.verdict.violations == []
    assert run.drained
    assert run.verdict.accepted > 50
    assert all(not passed.error for passed in run.passed)


def test_some_seeds_in_a_row_use_every_nemesis_alone() -> None:
    used = [w.nemeses[0] for seed in range(plan.rounds()) for w in plan.draw(seed) if len(w.nemeses) == 1]
    assert sorted(used) == sorted(plan.possible())


def test_a_seed_gives_the_same_plan_again() -> None:
    assert plan.draw(4711) == plan.draw(4711) != plan.draw(4712)


def test_mutants_are_made_for_this_code() -> None:
    assert mutants.stale(ROOT) == []


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_can_be_applied_and_are_python(mutant: mutants.Mutant, tmp_path: Path) -> None:
    for file, _ in mutant.places:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text())
    assert mutants.sabotage(tmp_path, mutant) == ""
    if mutant.file.endswith(".py"):
        compile((tmp_path / mutant.file).read_text(), mutant.file, "exec")
