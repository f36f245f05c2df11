"""The judge: reads a history after all faults were healed and the queues drained, and knows nothing of the system."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.history import Event
from tests.chaos.transitions import FINAL

CLOCK_SLACK_SECONDS = 0.2
"""How far the database's clock reading and ours may be apart, and how much later A sees a call than its caller."""

LEASE_SECONDS = 5.0
"""How long after its lease was asked for a call may begin."""
LEASE_SHARE = 1 / 4
"""Of its limit, where that is shorter."""
LOSSES = 5
"""So many attempts, and no fewer, may end a task without an answer of A's before its deadline."""
HELD_UP_SECONDS = 5.0
PATIENCE_SECONDS = 120.0
"""How long after the end of the first fault that hit it a task may end: others have followed."""

VIOLATIONS = {
    "lost": "an acknowledged task is not final",
    "doubled": "a task has not exactly one final transition, or one submission made two tasks",
    "unfounded": "a task's final status is not what service A answered for it",
    "overlapping": "service A's calls for one device overlap",
    "attempt called twice": "service A was called twice for the same attempt",
    "without a lease": "service A was called although the database had not written down that the attempt begins",
    "leased twice": "an attempt was granted to two leases",
    "stale lease": "a call began too long after its lease had been asked for",
    "after the deadline": "an attempt began after its task's deadline",
    "held up": "while somebody held some rows locked, no other task ended",
    "kept waiting": "a task ended long after the faults that had hit it",
    "late": "a call reached service A after it was given up",
    "called after the end": "service A was called for a task that had ended",
    "repeated": "service A was called again although its answer had reached us",
    "order": "a device's tasks were not taken in the order of acceptance",
    "key": "one idempotency key made two tasks, or was answered with two",
    "retry": "a task that nobody asked for again was tried again, or one that had not failed",
    "begun after a cancel": "a call began for a task that had been taken back",
    "cancel": "a task was cancelled and nobody asked for it, or was not though that was answered",
    "wait": "a wait was answered too early, or as if its task had not ended though others had been told",
    "going back": "a status seen by a reader went back",
    "unsent": "a task that nobody sent",
    "answer": "an answer outside the contract",
    "bug": "a process logged a bug",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """What was promised and did not hold; `at`: in the history's monotonic seconds."""

    kind: str
    at: float
    task: str
    detail: str


@dataclass(slots=True)
class Verdict:
    """What a history shows."""

    violations: list[Violation] = field(default_factory=list)
    accepted: int = 0
    unknown: int = 0
    refused: int = 0
    stored: int = 0
    calls: int = 0
    repeated_calls: int = 0
    reads: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    """How many tasks ended in which code, and in error for which reason."""
    errors: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str) -> int:
        """Count the violations of a kind."""
        return sum(violation.kind == kind for violation in self.violations)


@dataclass(slots=True)
class Call:
    """One call that A saw.

    `sent`: when its caller began; `limit`: when its caller was to give it up; `begin`: when it reached A; `end`: when
    A let go of the device, or the limit had passed; `code` and `answered`: what A said, and when.
    """

    device: str
    task: str
    attempt: int
    sent: float
    begin: float
    end: float
    limit: float
    code: int | None = None
    answered: float = math.inf

    @property
    def is_late(self) -> bool:
        """Whether A began when nobody waited for it any more."""
        return self.begin >= self.end


def check(history: Sequence[Event]) -> Verdict:
    """Check everything that is promised."""
    events: defaultdict[str, list[Event]] = defaultdict(list)
    for event in history:
        events[event["kind"]].append(event)
    rows = {row["task"]: row for row in events["row"]}
    calls = _calls(events)
    verdict = Verdict(stored=len(rows), calls=len(calls), reads=len(events["read"]))
    changes: defaultdict[str, list[Event]] = defaultdict(list)
    for change in events["transition"]:
        changes[change["task"]].append(change)
    found = verdict.violations
    found += _check_submissions(events, rows, verdict)
    run = events["run"][0] if events["run"] else {}
    found += _check_ends(rows, changes, calls, run.get("deadline", math.inf))
    found += _check_waits(events["healed"], changes, run.get("patience", PATIENCE_SECONDS))
    found += _check_overlaps(calls)
    found += _check_attempts(calls, rows, changes)
    found += _check_leases(events, calls, changes, min(LEASE_SECONDS, LEASE_SHARE * run.get("limit", math.inf)))
    found += _check_locks(events)
    given_up = {event["sent"]: event["t"] for event in events["given up"]}
    found += _check_late(calls, given_up, _standstills(events))
    if events["run"] and events["run"][0].get("once"):
        found += _check_repeats(calls)
    found += _check_order(events, rows, changes, calls)
    found += _check_cancels(events["cancel"], rows, changes)
    found += _check_waiting(events["read"], _stops(events))
    found += _check_reads(events["read"], {event["task"]: event["t"] for event in events["submitted"]})
    for bug in events["bug"]:
        found.append(Violation("bug", bug["t"], "", bug["line"][:300]))
    called = Counter(call.task for call in calls)
    verdict.repeated_calls = sum(count - 1 for count in called.values())
    verdict.finished = dict(Counter(str(row["code"]) for row in rows.values()))
    verdict.errors = dict(Counter(row["reason"] or "?" for row in rows.values() if row["status"] == "error"))
    found.sort(key=lambda violation: violation.at)
    return verdict


def _calls(events: dict[str, list[Event]]) -> list[Call]:
    limit = events["run"][0]["limit"] if events["run"] else math.inf
    killed = [event["t"] for event in events["a.killed"]]
    open_calls: dict[int, Call] = {}
    calls = []
    for event in sorted([*events["a.begin"], *events["a.end"]], key=lambda event: float(event["t"])):
        if event["kind"] == "a.end":
            if call := open_calls.get(event["call"]):
                call.end, call.code, call.answered = min(call.end, event["t"]), event["code"], event["t"]
            continue
        begin = event["t"]
        # The promise holds as long as A answers within the limit: what outlasts it counts until then.
        given_up = event.get("until") or event["sent"] + limit
        end = min([given_up - CLOCK_SLACK_SECONDS, *(time for time in killed if time >= begin)])
        call = Call(event["device"], event["task"], event["attempt"], event["sent"], begin, end, given_up)
        open_calls[event["call"]] = call  # A restarted A numbers anew; those before it have ended.
        calls.append(call)
    return calls


def _check_submissions(events: dict[str, list[Event]], rows: dict[str, Event], verdict: Verdict) -> Iterable[Violation]:
    sent = {event["marker"]: event["device"] for event in events["submit"]}
    accepted: dict[str, Event] = {}
    for event in events["submitted"]:
        if event["status"] == 200 and event["task"]:
            before = accepted.setdefault(event["marker"], event)
            verdict.accepted += before is event
            if before["task"] != event["task"]:
                yield Violation("key", event["t"], event["task"], f"{event['marker']} was {before['task']} before")
            row = rows.get(event["task"])
            if row is None or row["status"] not in FINAL:
                state = "there is no such row" if row is None else f"it is {row['status']}"
                yield Violation("lost", event["t"], event["task"], f"accepted for {event['device']}, but {state}")
        elif event["status"] is None:
            verdict.unknown += 1
        elif event["status"] == 503:
            verdict.refused += 1
        else:
            yield Violation("answer", event["t"], "", f"POST answered {event['status']}")
    tasks_of = defaultdict(list)
    keyed = {event["marker"] for event in events["submitted"] if event.get("key")}
    yield from _check_retries(events["retry"], rows)
    for task, row in rows.items():
        marker = row["marker"]
        if row.get("retry_of") is None:
            tasks_of[marker].append(task)
        if sent.get(marker) != row["device"]:
            yield Violation("unsent", row["t"], task, f"{row['device']} with {marker!r}")
        if row["status"] not in FINAL and marker not in accepted:
            yield Violation("lost", row["t"], task, f"stored, not acknowledged, and still {row['status']}")
    for marker, tasks in tasks_of.items():
        known = accepted.get(marker)
        if len(tasks) > 1 or (known and known["task"] not in tasks):
            kind = "key" if marker in keyed else "doubled"
            yield Violation(kind, rows[tasks[0]]["t"], tasks[0], f"submission {marker} made {tasks}")


def _check_retries(retries: Sequence[Event], rows: dict[str, Event]) -> Iterable[Violation]:
    """Each failed task is tried again under one key: whatever was sent how often, that makes one task."""
    asked = {event["task"] for event in retries}
    made = defaultdict(list)
    for task, row in rows.items():
        if before := row.get("retry_of"):
            made[before].append(task)
            if row["status"] not in FINAL:
                yield Violation("lost", row["t"], task, f"a retry of {before}, and still {row['status']}")
            if before not in asked or before not in rows or rows[before]["code"] == 200:
                yield Violation("retry", row["t"], task, f"of {before}")
    for event in retries:
        if event["made"] and event["made"] not in made[event["task"]]:
            yield Violation("lost", event["t"], event["made"], f"accepted as a retry of {event['task']}")
        elif event["status"] not in (None, 202, 409, 503):
            yield Violation("answer", event["t"], event["task"], f"a retry answered {event['status']}")
    for before, tasks in made.items():
        if len(tasks) > 1:
            yield Violation("key", rows[tasks[0]]["t"], before, f"was tried again by {tasks}")


def _check_ends(
    rows: dict[str, Event], changes: dict[str, list[Event]], calls: Sequence[Call], deadline: float
) -> Iterable[Violation]:
    answers = defaultdict(list)
    for call in calls:
        if call.code:
            answers[call.task].append(call)
    for task, row in rows.items():
        ends = [change for change in changes.get(task, ()) if change["old_status"] and change["status"] in FINAL]
        if row["status"] in FINAL and [change["status"] for change in ends] != [row["status"]]:
            seen = [(change["old_status"], change["status"]) for change in ends]
            yield Violation("doubled", row["t"], task, f"{row['status']} by the transitions {seen}")
        wanted = {"success": 200}.get(row["status"], 404 if row["code"] == 404 else None)
        at = ends[0]["t"] if ends else row["t"]
        if wanted and not any(
            call.code == wanted and call.answered <= at + CLOCK_SLACK_SECONDS for call in answers.get(task, ())
        ):
            said = [(call.attempt, call.code) for call in answers.get(task, ())]
            yield Violation("unfounded", at, task, f"{row['status']} {row['code']}, but A said {said}")
        stored = changes[task][0]["t"] if task in changes else row["t"]
        if (
            row["code"] == 500
            and row.get("ended_by") != "cancel"
            and at - stored < deadline - CLOCK_SLACK_SECONDS
            and row["attempt"] < LOSSES
        ):
            said = [(call.attempt, call.code) for call in answers.get(task, ())]
            if 500 not in (code for _, code in said):
                detail = f"error after {at - stored:.1f} s and {row['attempt']} attempts, but A said {said}"
                yield Violation("unfounded", at, task, detail)
    for task, seen_changes in changes.items():
        if task not in rows or any(change["status"] is None for change in seen_changes):
            yield Violation("lost", seen_changes[0]["t"], task, "its row was removed")


def _check_cancels(
    cancels: Sequence[Event], rows: dict[str, Event], changes: dict[str, list[Event]]
) -> Iterable[Violation]:
    """What was taken back before its lease never begins; what was under way is not tried again."""
    asked = {event["task"]: event["began"] for event in reversed(cancels)}
    for task, row in rows.items():
        if row.get("ended_by") == "cancel" and task not in asked:
            yield Violation("cancel", row["t"], task, "nobody asked for that")
    for event in cancels:
        task, status = event["task"], event["status"]
        found, own = rows.get(task), changes.get(task, ())
        end = next((change["t"] for change in own if change["status"] in FINAL), math.inf)
        if status == 200 and not (found and found.get("ended_by") == "cancel"):
            yield Violation("cancel", event["t"], task, "answered as cancelled, and is not")
        elif status == 409 and end > event["t"] + CLOCK_SLACK_SECONDS:
            yield Violation("cancel", event["t"], task, "answered as ended, and was not")
        elif status not in (None, 200, 202, 409, 503):
            yield Violation("answer", event["t"], task, f"a cancel answered {status}")
        if status not in (200, 202):
            continue
        for change in own:
            begins = change["begun"] and change["begun"] != change["old_begun"]
            if begins and status == 200 and found and change["attempt"] == found["attempt"]:
                yield Violation("begun after a cancel", change["t"], task, "it had begun, and was answered 200")
            if begins and change["t"] > event["t"] + CLOCK_SLACK_SECONDS:
                late = change["t"] - event["t"]
                detail = f"attempt {change['attempt']} began {late:.3f} s after the answer {status}"
                yield Violation("begun after a cancel", change["t"], task, detail)


def _check_waiting(reads: Sequence[Event], stops: Sequence[tuple[float, float]]) -> Iterable[Violation]:
    """Who has waited to the end is told how it is then, also if nobody was told that the task ended.

    What counts is that another one was told so: an end is noted by its statement, and can be seen after the commit.
    """
    told: dict[str, float] = {}
    for read in reads:
        if read["status"] in (200, 404, 500) and _state(read) not in ("running", "missing"):
            told[read["task"]] = min(read["t"], told.get(read["task"], math.inf))
    for read in reads:
        if not read.get("wait") or read["status"] != 200 or _state(read) != "running":
            continue
        until, seen = read["began"] + read["wait"], told.get(read["task"], math.inf)
        if read["t"] < until - CLOCK_SLACK_SECONDS:
            # A process that stops answers at once.
            if not any(began <= read["t"] and read["began"] <= ended for began, ended in stops):
                yield Violation("wait", read["t"], read["task"], f"answered {until - read['t']:.3f} s too early")
        elif seen < until - CLOCK_SLACK_SECONDS:
            yield Violation(
                "wait", read["t"], read["task"], f"another was told of the end {read['t'] - seen:.3f} s before"
            )


def _stops(events: dict[str, list[Event]]) -> list[tuple[float, float]]:
    """List the times in which web processes were stopped, one after the other."""
    windows = [(event["t"], event["nemeses"]) for event in events["window"]]
    ends = [event["t"] for event in events["healed"]]
    return [
        (began, min((end for end in ends if end >= began), default=math.inf))
        for began, nemeses in windows
        if "stop web" in nemeses
    ]


def _check_waits(healed: Sequence[Event], changes: dict[str, list[Event]], patience: float) -> Iterable[Violation]:
    for task, own in changes.items():
        end = next((change["t"] for change in own if change["status"] in FINAL), None)
        hit = [event["t"] for event in healed if end and own[0]["t"] <= event["t"] < end]
        if end and hit and end - hit[0] > patience:
            yield Violation("kept waiting", end, task, f"{end - hit[0]:.1f} s")


def _check_overlaps(calls: Sequence[Call]) -> Iterable[Violation]:
    devices = defaultdict(list)
    for call in calls:
        devices[call.device].append(call)
    for device, own in devices.items():
        own.sort(key=lambda call: call.begin)
        first = own[0]
        for second in own[1:]:
            if second.begin < first.end and not second.is_late:
                yield Violation(
                    "overlapping",
                    second.begin,
                    second.task,
                    f"{device}: attempt {second.attempt} began {first.end - second.begin:.3f} s before the end of "
                    f"{first.task} attempt {first.attempt}",
                )
            if second.end > first.end:
                first = second


def _check_attempts(
    calls: Sequence[Call], rows: dict[str, Event], changes: dict[str, list[Event]]
) -> Iterable[Violation]:
    seen = set()
    for call in calls:
        key = call.task, call.attempt
        if key in seen:
            yield Violation("attempt called twice", call.begin, call.task, f"attempt {call.attempt}")
        seen.add(key)
        if call.task not in rows:
            yield Violation("unsent", call.begin, call.task, f"A was called for {call.device}")
        for change in () if call.is_late else changes.get(call.task, ()):
            if change["status"] in FINAL and call.begin > change["t"] + CLOCK_SLACK_SECONDS:
                late = call.begin - change["t"]
                yield Violation("called after the end", call.begin, call.task, f"attempt {call.attempt}: {late:.3f} s")
                break


def _check_leases(
    events: dict[str, list[Event]], calls: Sequence[Call], changes: dict[str, list[Event]], fresh: float
) -> Iterable[Violation]:
    """No call begins before the database has written down that it does, and none long after."""
    asked: dict[str, float] = {}
    for event in events["asked"]:
        for lease in event["leases"]:
            asked.setdefault(lease, event["t"])
    seconds = events["run"][0].get("deadline", math.inf) if events["run"] else math.inf
    grants: defaultdict[tuple[str, int], list[Event]] = defaultdict(list)
    for task, own in changes.items():
        accepted = own[0]["t"] if own[0]["old_status"] is None else math.inf
        for change in own:
            before = change["old_begun"] and (change["old_lease"], change["old_attempt"])
            if not change["begun"] or before == (change["lease"], change["attempt"]):
                continue
            grants[task, change["attempt"]].append(change)
            if change["begun"] > change["deadline"] or change["t"] > accepted + seconds + CLOCK_SLACK_SECONDS:
                detail = f"attempt {change['attempt']} begun at {change['begun']}, deadline {change['deadline']}"
                yield Violation("after the deadline", change["t"], task, detail)
    for (task, attempt), granted in grants.items():
        if len(granted) > 1:
            yield Violation("leased twice", granted[1]["t"], task, f"attempt {attempt}")
    for call in calls:
        granted = [g for g in grants.get((call.task, call.attempt), ()) if g["t"] <= call.begin + CLOCK_SLACK_SECONDS]
        if not granted:
            yield Violation("without a lease", call.begin, call.task, f"{call.device}: attempt {call.attempt}")
            continue
        lease = granted[-1]["lease"]
        late = call.sent - (asked[lease] if lease in asked else granted[-1]["t"]) - fresh
        if late > CLOCK_SLACK_SECONDS:
            yield Violation("stale lease", call.begin, call.task, f"attempt {call.attempt}: {late:.3f} s too late")


def _check_locks(events: dict[str, list[Event]]) -> Iterable[Violation]:
    """A locked row delays its own device, no other; judged where nothing else was wrong, by the ends of calls."""
    ends = [change["t"] for change in events["transition"] if change["old_begun"] and change["status"] in FINAL]
    alone = [window["t"] for window in events["window"] if len(window["nemeses"]) == 1]
    for locked, unlocked in zip(events["locked"], events["unlocked"], strict=False):
        last_window = max((window["t"] for window in events["window"] if window["t"] <= locked["t"]), default=0)
        if last_window not in alone:
            continue
        times = [locked["t"], *(t for t in ends if locked["t"] < t < unlocked["t"]), unlocked["t"]]
        gap = max(after - before for before, after in pairwise(times))
        if gap > HELD_UP_SECONDS:
            yield Violation("held up", locked["t"], "", f"for {gap:.1f} s, with {len(locked['tasks'])} rows locked")


def _standstills(events: dict[str, list[Event]]) -> list[tuple[float, float]]:
    """List the times in which A was paused: what its kernel had taken for it, it reads later."""
    found = []
    for event in events["paused"]:
        if event["name"] == "service_a":
            ends = [end["t"] for end in events["resumed"] if end["name"] == event["name"] and end["t"] >= event["t"]]
            found.append((event["t"], min(ends, default=math.inf)))
    return found


def _check_late(
    calls: Sequence[Call], given_up: Mapping[float, float], standstills: Sequence[tuple[float, float]]
) -> Iterable[Violation]:
    """What its caller has given up must not reach A, unless A itself stood still. `given_up`: when, by when sent."""
    for call in calls:
        late = call.begin - max(call.limit, given_up.get(call.sent, 0.0)) - CLOCK_SLACK_SECONDS
        if late > 0 and not any(began <= call.begin and call.sent <= ended for began, ended in standstills):
            yield Violation("late", call.begin, call.task, f"{call.device}: attempt {call.attempt}, {late:.3f} s")


def _check_repeats(calls: Sequence[Call]) -> Iterable[Violation]:
    """For runs whose faults excuse no repetition: A's answer reached us."""
    answered: dict[str, Call] = {}
    for call in calls:
        if before := answered.get(call.task):
            detail = f"attempt {call.attempt}, after the answer {before.code} to attempt {before.attempt}"
            yield Violation("repeated", call.begin, call.task, detail)
        if call.code and call.answered < call.limit:
            answered[call.task] = call


def _check_order(
    events: dict[str, list[Event]], rows: dict[str, Event], changes: dict[str, list[Event]], calls: Sequence[Call]
) -> Iterable[Violation]:
    """What was acknowledged before another of its device was sent is called, and promoted, before that one.

    Of two that were under way at once either may be first.
    """
    sent = {event["marker"]: event["t"] for event in events["submit"]}
    first_call: dict[str, float] = {}
    for call in calls:
        first_call[call.task] = min(first_call.get(call.task, math.inf), call.begin)
    promoted: dict[str, int] = {}
    for task, own in changes.items():
        for change in own:
            if change["active"] and not change["old_active"]:
                promoted.setdefault(task, change["n"])
    devices = defaultdict(list)
    for event in events["submitted"]:
        devices[event["device"]].append(event)
    for device, submitted in devices.items():
        for what, when in (("called", first_call), ("promoted", promoted)):
            taken = [event for event in submitted if event["task"] in when]
            acknowledged = deque(sorted(taken, key=lambda event: event["t"]))
            last: Event | None = None
            for event in sorted(taken, key=lambda event: sent[event["marker"]]):
                # Of all that had been acknowledged when this one was sent, the one that was taken last.
                while acknowledged and acknowledged[0]["t"] < sent[event["marker"]]:
                    earlier = acknowledged.popleft()
                    if last is None or when[earlier["task"]] > when[last["task"]]:
                        last = earlier
                if last and when[event["task"]] < when[last["task"]]:
                    detail = f"{device}: was {what} before {last['task']}, which was acknowledged before it was sent"
                    yield Violation("order", event["t"], event["task"], detail)
    yield from _check_acceptance(events, rows)


def _check_acceptance(events: dict[str, list[Event]], rows: dict[str, Event]) -> Iterable[Violation]:
    """What was acknowledged before another was sent comes before it."""
    sent = {event["marker"]: event["t"] for event in events["submit"]}
    devices = defaultdict(list)
    for event in events["submitted"]:
        if event["task"] in rows:
            devices[event["device"]].append(event)
    for device, own in devices.items():
        for first, second in pairwise(sorted(own, key=lambda event: int(rows[event["task"]]["seq"]))):
            if second["t"] < sent[first["marker"]]:
                detail = f"{device}: acknowledged before {first['task']} was sent, but behind it"
                yield Violation("order", second["t"], second["task"], detail)


def _check_reads(reads: Sequence[Event], accepted_at: dict[str, float]) -> Iterable[Violation]:
    tasks = defaultdict(list)
    for read in reads:
        if read["status"] in (200, 404, 500):
            tasks[read["task"]].append(read)
        elif read["status"] not in (None, 503):
            yield Violation("answer", read["t"], read["task"], f"GET answered {read['status']}")
    for task, own in tasks.items():
        finals = [read for read in own if _state(read) != "running"]
        for read in own:
            earlier = {_state(final) for final in finals if final["t"] < read["began"]}
            if earlier - {_state(read)}:
                yield Violation("going back", read["t"], task, f"from {sorted(earlier)} to {_state(read)}")
            if _state(read) == "missing" and accepted_at.get(task, math.inf) < read["began"]:
                yield Violation("going back", read["t"], task, "acknowledged, and then not to be found")


def _state(read: Event) -> str:
    if read["status"] == 200:
        return "running" if read["says"] == 204 else "success"
    if read["status"] == 404:
        return "missing" if "task" in str(read["says"]) else "not found"
    return "error"
