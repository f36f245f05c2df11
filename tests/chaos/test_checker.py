"""The checker is a program too: each violation is found in a history made by hand, and a clean history is clean."""

from typing import Any

import pytest

from tests.chaos.checker import VIOLATIONS, check
from tests.chaos.history import Event

Made = list[Event]


def event(kind: str, t: float, **fields: Any) -> Event:
    return {"kind": kind, "t": t, "w": t} | fields


def transition(n: int, t: float, task: str, old: str | None, new: str | None, **fields: Any) -> Event:
    states: dict[str, Any] = {
        "old_active": None if old is None else True,
        "active": new == "pending",
        "old_attempt": 1,
        "attempt": 1,
    }
    states |= {"old_begun": None, "begun": None, "old_lease": None, "lease": None, "deadline": 1000.0}
    return event("transition", t, n=n, task=task, old_status=old, status=new, **states | fields)


def task(name: str, t: float, *, seq: int, device: str = "DEVICE1", status: str = "success", code: int = 200) -> Made:
    """One task's life, from `t` on: sent, called from t+1 to t+2, ended at t+2.5 and read at t+4."""
    says = {200: 200, 404: "The requested equipment is not found", 500: 500}[code]
    return [
        event("submit", t, marker=f"m-{name}", device=device),
        event("submitted", t + 0.5, marker=f"m-{name}", device=device, status=200, task=name),
        transition(seq * 10, t + 0.4, name, None, "pending", attempt=0),
        transition(seq * 10 + 1, t + 0.6, name, "pending", "pending", old_attempt=0),
        event("asked", t + 0.7, leases=[f"lease-{name}"]),
        transition(seq * 10 + 2, t + 0.8, name, "pending", "pending", begun=t + 0.8, lease=f"lease-{name}"),
        event("a.begin", t + 1, call=seq, device=device, task=name, attempt=1, sent=t + 1),
        event("a.end", t + 2, call=seq, code=code),
        transition(seq * 10 + 3, t + 2.5, name, "pending", status),
        event("read", t + 1.6, task=name, began=t + 1.5, status=200, says=204),
        event("read", t + 4.1, task=name, began=t + 4, status=code, says=says),
        event(
            "row",
            t + 9,
            task=name,
            seq=seq,
            device=device,
            status=status,
            code=code,
            reason=None,
            attempt=1,
            marker=f"m-{name}",
            ended_by=None,
            retry_of=None,
        ),
    ]


def cancelled(status: int | None, t: float = 1.7, **row: Any) -> Made:
    """The clean history, and one client that takes the first task back."""
    asked = event("cancel", t, task="one", began=t - 0.1, status=status)
    return [*altered("row", "one", **row), asked] if row else [*clean(), asked]


def retried(*, made: str, of_task: str, times: int = 1, status: int = 202) -> Made:
    """The clean history, and a task that was made to try another one again."""
    history = clean()
    for number in range(times):
        own = task(f"{made}{number}", 20 + 10 * number, seq=20 + number, device="DEVICE2")
        row = of(own, "row", f"{made}{number}")
        row |= {"retry_of": of_task, "marker": f"m-{of_task}"}
        history += [e for e in own if e["kind"] not in ("submit", "submitted")]
        history.append(event("retry", 19, task=of_task, status=status, made=f"{made}{number}"))
    return history


def clean() -> Made:
    """Three tasks, two of them of one device, one after the other."""
    return [
        event("run", 0, limit=4),
        *task("one", 1, seq=1),
        *task("two", 5, seq=2),
        *task("three", 2, seq=3, device="DEVICE2", status="error", code=404),
    ]


def of(history: Made, kind: str, name: str) -> Event:
    return next(event for event in history if event["kind"] == kind and event.get("task") == name)


def kinds(history: Made) -> set[str]:
    verdict = check(sorted(history, key=lambda event: float(event["t"])))
    return {violation.kind for violation in verdict.violations}


def test_clean_history_is_clean() -> None:
    verdict = check(clean())
    assert (verdict.violations, verdict.accepted, verdict.calls, verdict.repeated_calls) == ([], 3, 3, 0)
    assert verdict.finished == {"200": 2, "404": 1}


def test_two_that_were_under_way_at_once_may_come_in_either_order() -> None:
    history = altered("row", "one", seq=7)
    next(e for e in history if e["kind"] == "submit" and e["marker"] == "m-two")["t"] = 1.2
    assert kinds(history) == set()


def test_one_that_was_sent_later_may_not_be_called_earlier() -> None:
    history = clean()
    of(history, "a.begin", "two").update(t=0.5, sent=0.5)
    assert "order" in kinds(history)


def without(kind: str, name: str) -> Made:
    history = clean()
    history.remove(of(history, kind, name))
    return history


def altered(kind: str, name: str, **fields: Any) -> Made:
    history = clean()
    of(history, kind, name).update(fields)
    return history


def leased(t: float, name: str, **fields: Any) -> Event:
    return transition(90, t, name, "pending", "pending", **({"begun": t, "lease": "another"} | fields))


BROKEN: dict[str, tuple[str, Made]] = {
    "not leased": (
        "without a lease",
        [e for e in clean() if (e["kind"], e.get("task"), e["t"]) != ("transition", "one", 1.8)],
    ),
    "leased after the call": (
        "without a lease",
        [e | {"t": 2.3} if (e["kind"], e.get("task"), e["t"]) == ("transition", "one", 1.8) else e for e in clean()],
    ),
    "leased for another attempt": (
        "without a lease",
        [e | {"attempt": 2} if (e["kind"], e.get("begun")) == ("transition", 1.8) else e for e in clean()],
    ),
    "two leases": ("leased twice", [*clean(), leased(2.2, "one", old_begun=1.8, old_lease="lease-one")]),
    "begun twice": ("leased twice", [*clean(), leased(4, "one", old_lease="lease-one", lease="lease-one")]),
    "a lease asked for long ago": (
        "stale lease",
        [
            # More than a quarter of the call's limit.
            e | {"t": 1.7} if e.get("leases") == ["lease-three"] else e
            for e in clean()
        ],
    ),
    "begun after the deadline": (
        "after the deadline",
        [e | {"deadline": 1.7} if e.get("begun") == 1.8 else e for e in clean()],
    ),
    "begun too long after acceptance": (
        "after the deadline",
        [e | {"deadline": 0.1} if e["kind"] == "run" else e for e in clean()],
    ),
    "all stand still for a locked row": (
        "held up",
        [
            *clean(),
            event("window", 10, nemeses=["locked rows"]),
            event("locked", 11, tasks=["x"]),
            # Taken back by its client: that needs no results process.
            transition(90, 14, "two", "pending", "error"),
            event("unlocked", 17, tasks=["x"]),
        ],
    ),
    "no row": ("lost", without("row", "one")),
    "never final": (
        "lost",
        [e for e in altered("row", "one", status="pending", code=None) if (e["t"], e.get("task")) != (3.5, "one")],
    ),
    "row removed": ("lost", [*clean(), transition(99, 20, "two", "success", None)]),
    "two ends": ("doubled", [*clean(), transition(99, 20, "two", "error", "success")]),
    "ended behind our back": (
        "doubled",
        [e for e in clean() if (e["kind"], e.get("task"), e["t"]) != ("transition", "one", 3.5)],
    ),
    "stored twice": ("doubled", [*clean(), of(clean(), "row", "one") | {"task": "x", "seq": 9}]),
    "success without A": ("unfounded", altered("row", "three", status="success", code=200)),
    "success before A said so": (
        "unfounded",
        [e | {"t": 2.2} if (e["kind"], e.get("task"), e["t"]) == ("transition", "one", 3.5) else e for e in clean()],
    ),
    "A said something else": (
        "unfounded",
        [e | {"code": 500} if e["kind"] == "a.end" and e["call"] == 3 else e for e in clean()],
    ),
    "overlap": (
        "overlapping",
        [
            *clean(),
            event("a.begin", 6.5, call=50, device="DEVICE1", task="one", attempt=2, sent=6.5),
            event("a.end", 7, call=50, code=200),
        ],
    ),
    "overlap with a call that hangs": (
        "overlapping",
        [
            *(e for e in clean() if e["kind"] != "a.end" or e["call"] != 1),
            event("a.begin", 5, call=51, device="DEVICE1", task="two", attempt=2, sent=5),
            event("a.end", 5.5, call=51, code=None),
        ],
    ),
    "one attempt, two calls": (
        "attempt called twice",
        [
            *clean(),
            event("a.begin", 3.1, call=52, device="DEVICE1", task="one", attempt=1, sent=3.1),
            event("a.end", 3.2, call=52, code=200),
        ],
    ),
    "reached A when nobody waited any more": (
        "late",
        [
            *clean(),
            event("a.begin", 6.5, call=50, device="DEVICE3", task="one", attempt=2, sent=2.2),
            event("a.end", 6.6, call=50, code=200),
        ],
    ),
    "called for a finished task": (
        "called after the end",
        [
            *clean(),
            event("a.begin", 4, call=53, device="DEVICE1", task="one", attempt=2, sent=4),
            event("a.end", 4.2, call=53, code=200),
        ],
    ),
    "an error that nobody asked for": (
        "unfounded",
        [
            e | {"status": "error", "code": 500} if (e["kind"], e.get("task")) == ("row", "one") else e
            for e in clean()
            if (e["kind"], e.get("code")) != ("a.end", 500)
        ],
    ),
    "a fault's last victim": (
        "kept waiting",
        [e | {"patience": 0.1} if e["kind"] == "run" else e for e in [*clean(), event("healed", 3.3)]],
    ),
    "taken out of turn": ("order", altered("row", "one", seq=7)),
    "accepted out of turn": ("order", altered("row", "two", seq=0)),
    "a reader sees it go back": (
        "going back",
        [*clean(), event("read", 30, task="one", began=29, status=200, says=204)],
    ),
    "from success to error": ("going back", [*clean(), event("read", 30, task="one", began=29, status=500, says=500)]),
    "acknowledged and not found": (
        "going back",
        [
            e | {"status": 404, "says": "The requested task is not found"}
            if e["kind"] == "read" and e["t"] == 2.6
            else e
            for e in clean()
        ],
    ),
    "nobody's row": ("unsent", altered("row", "one", marker="somebody else's")),
    "nobody's call": (
        "unsent",
        [*clean(), event("a.begin", 9, call=54, device="DEVICE3", task="x", attempt=1, sent=9)],
    ),
    "strange answer": ("answer", [*clean(), event("submitted", 9, marker="m", device="D", status=500, task=None)]),
    "strange status": ("answer", [*clean(), event("read", 9, task="one", began=8, status=502, says=None)]),
    "sent twice under a key, stored twice": (
        "key",
        [
            *altered("submitted", "one", key="m-one"),
            of(clean(), "row", "one") | {"task": "x", "seq": 9},
        ],
    ),
    "answered with two tasks": (
        "key",
        [*clean(), event("submitted", 9, marker="m-one", device="DEVICE1", status=200, task="two", key="m-one")],
    ),
    "tried again twice": ("key", retried(made="again", of_task="three", times=2)),
    "tried again though configured": ("retry", retried(made="again", of_task="one")),
    "tried again by nobody": ("retry", [e for e in retried(made="again", of_task="three") if e["kind"] != "retry"]),
    "a retry that is not there": ("lost", [*clean(), event("retry", 9, task="three", status=202, made="x")]),
    "a strange answer to a retry": ("answer", [*clean(), event("retry", 9, task="three", status=500, made=None)]),
    "begun though taken back": ("begun after a cancel", cancelled(200, 1.1, ended_by="cancel")),
    "begun though not to be tried again": ("begun after a cancel", cancelled(202, 1.1)),
    "cancelled by nobody": ("cancel", altered("row", "one", status="error", code=500, ended_by="cancel")),
    "not cancelled after all": ("cancel", cancelled(200)),
    "not ended yet": ("cancel", cancelled(409)),
    "a strange answer to a cancel": ("answer", cancelled(404)),
    "waited in vain": (
        "wait",
        [*clean(), event("read", 7.1, task="one", began=3.3, status=200, says=204, wait=3)],
    ),
    "waited too short": ("wait", [*clean(), event("read", 3.1, task="one", began=2.9, status=200, says=204, wait=3)]),
    "taken back though it had begun": ("begun after a cancel", cancelled(200, 3.4, ended_by="cancel")),
    "a bug": ("bug", [*clean(), event("bug", 9, line="relay.bug")]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_violation_is_found(name: str) -> None:
    kind, history = BROKEN[name]
    assert kind in kinds(history)


def test_each_kind_of_violation_has_its_history() -> None:
    assert {kind for kind, _ in BROKEN.values()} | {"repeated"} == set(VIOLATIONS)


def test_asked_again_the_same_lease_is_granted_again() -> None:
    same = leased(2.2, "one", old_begun=1.8, old_lease="lease-one", lease="lease-one", active=False)
    assert kinds([*clean(), same]) == set()


def test_a_locked_row_is_not_blamed_for_what_else_stands_still() -> None:
    _, history = BROKEN["all stand still for a locked row"]
    history = [e for e in history if e.get("n") != 90]
    both = ["locked rows", "kill results"]
    assert kinds([e | {"nemeses": both} if e["kind"] == "window" else e for e in history]) == set()


def test_one_call_that_ends_shows_that_not_all_stands_still() -> None:
    _, history = BROKEN["all stand still for a locked row"]
    assert "held up" not in kinds([e | {"old_begun": 13.5} if e.get("n") == 90 else e for e in history])


def test_a_lost_answer_is_not_a_lost_task() -> None:
    history = altered("submitted", "one", status=None, task=None)
    history = [e for e in history if e["kind"] != "read" or e["task"] != "one"]
    verdict = check(history)
    assert (verdict.violations, verdict.accepted, verdict.unknown, verdict.stored) == ([], 2, 1, 3)


def test_reads_that_overlap_in_time_may_differ() -> None:
    assert kinds([*clean(), event("read", 5.3, task="one", began=3.4, status=200, says=204)]) == set()


def test_a_call_that_outlasts_the_limit_counts_only_until_then() -> None:
    history = clean()
    for e in history:
        if e["kind"] == "a.end" and e["call"] == 1:
            e["t"] = 50
        if (e["kind"], e.get("task"), e["t"]) == ("transition", "one", 3.5):
            e["t"] = 6
    assert "overlapping" not in kinds(history)


@pytest.mark.parametrize(
    ("name", "paused", "resumed", "excused"),
    [
        ("configurator_1", 2, 6.4, False),
        ("service_a", 5, 7, True),
        ("service_a", 3, None, True),
        ("service_a", 1, 2, False),
        ("service_a", 6.6, 7, False),
    ],
)
def test_a_late_call_is_excused_where_service_a_stood_still(
    name: str, paused: float, resumed: float | None, excused: bool
) -> None:
    kind, history = BROKEN["reached A when nobody waited any more"]
    history = [*history, event("paused", paused, name=name)]
    if resumed is not None:
        history.append(event("resumed", resumed, name=name))
    assert (kind in kinds(history)) is not excused


def test_a_call_that_reaches_a_just_within_the_limit_is_not_late() -> None:
    kind, history = BROKEN["reached A when nobody waited any more"]
    history = [e | {"sent": 2.4} if e["kind"] == "a.begin" and e["call"] == 50 else e for e in history]
    assert kind not in kinds(history)


@pytest.mark.parametrize(("given_up", "excused"), [(6.4, True), (6.25, False)])
def test_a_call_is_late_only_if_its_caller_had_given_it_up(given_up: float, excused: bool) -> None:
    """On a machine without a free core that may be some time after its limit."""
    kind, history = BROKEN["reached A when nobody waited any more"]
    assert (kind in kinds([*history, event("given up", given_up, sent=2.2)])) is not excused


def test_a_killed_service_a_works_on_nothing() -> None:
    kind, history = BROKEN["overlap with a call that hangs"]
    assert kind not in kinds([*history, event("a.killed", 4)])


def test_repeated_calls_are_a_violation_only_where_no_fault_excuses_them() -> None:
    again = [
        leased(3.05, "one", attempt=2),
        event("a.begin", 3.1, call=60, device="DEVICE1", task="one", attempt=2, sent=3.1),
        event("a.end", 3.2, call=60, code=200),
    ]
    assert kinds([*clean(), *again]) == set()
    assert kinds([e | {"once": True} if e["kind"] == "run" else e for e in [*clean(), *again]]) == {"repeated"}


def test_acts_that_are_answered_with_the_truth_are_clean() -> None:
    assert kinds(cancelled(202)) == set()
    assert kinds(cancelled(409, 4.5)) == set()
    assert kinds(cancelled(None)) == set()
    assert kinds(retried(made="again", of_task="three")) == set()
    again = of(clean(), "submitted", "one") | {"t": 3.0, "key": "m-one"}
    verdict = check([*clean(), again])
    assert (verdict.violations, verdict.accepted) == ([], 3)


def test_a_task_that_was_taken_back_needs_no_answer_of_service_a() -> None:
    """It ended before its call: what else ends as an error must have been answered so."""
    calls = {"a.begin", "a.end", "asked"}
    history = [
        e | {"status": "error", "code": 500, "ended_by": "cancel"} if e["kind"] == "row" and e["task"] == "one" else e
        for e in clean()
        if not (e["kind"] in calls and (e.get("task") == "one" or e.get("call") == 1 or "lease-one" in str(e)))
        and not (e["kind"] == "transition" and e["task"] == "one" and e["t"] == 1.8)
        and not (e["kind"] == "read" and e["task"] == "one")
    ]
    history = [
        e | {"status": "error"} if e["kind"] == "transition" and e["task"] == "one" and e["status"] == "success" else e
        for e in history
    ]
    asked = event("cancel", 3.6, task="one", began=3.0, status=200)
    assert kinds([*history, asked]) == set()
    assert kinds([e | {"ended_by": None} if e["kind"] == "row" else e for e in history]) == {"unfounded"}


def test_a_wait_that_a_stop_cuts_short_says_how_it_is() -> None:
    _, history = BROKEN["waited too short"]
    stopped = [event("window", 2.5, nemeses=["stop web"]), event("healed", 3.2)]
    assert kinds([*history, *stopped]) == set()
