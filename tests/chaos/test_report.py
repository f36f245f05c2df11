"""The report says how long each task that a fault hit had to wait, and writes it so that a person can read it."""

from pathlib import Path

from tests.chaos.checker import check
from tests.chaos.history import History, read
from tests.chaos.report import Report
from tests.chaos.scenario import Passed, Run


def a_run(folder: Path) -> Run:
    """Two faults, over at 5 and at 10; one task ended before, one is hit by the first, one by both."""
    with History(folder / "all.jsonl") as history:
        for task, stored, ended in (("quick", 1, 2), ("hit", 1, 8), ("hit twice", 1, 12), ("later", 6, 11)):
            history.write("submitted", t=stored, status=200, task=task, marker=task, device="D")
            history.write("transition", t=stored, task=task, old_status=None, status="pending")
            history.write("transition", t=ended, task=task, old_status="pending", status="success")
    passed = [Passed(name, (name,), healed - 3, healed, healed + 1, 0.5) for name, healed in (("kill", 5), ("cut", 10))]
    return Run(1, folder, passed, check([]))


def test_each_task_that_was_hit_counts_from_the_end_of_the_first_fault_that_hit_it(tmp_path: Path) -> None:
    report = Report()
    report.add(a_run(tmp_path))
    assert sorted(report.rows["kill"].waits) == [3, 7]
    assert report.rows["cut"].waits == [1]
    assert (report.total.wait(0.5), report.total.wait(0.99), report.total.wait(1)) == (3, 7, 7)


def test_the_table_is_written_by_the_suite(tmp_path: Path) -> None:
    report = Report()
    report.add(a_run(tmp_path / "run"))
    report.save(tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| kill | 1 | 4 | 0 |" in text
    assert "Not one promise was broken." in text
    assert len(read(tmp_path / "run")) == 12
