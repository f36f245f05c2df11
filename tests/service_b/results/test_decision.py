"""What an outcome does to its task: who is finished, who is tried again, and when."""

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.messages import Outcome, OutcomeKind
from service_b.results.decision import backoff_seconds, decide
from service_b.results.settings import Settings

CODES = {
    OutcomeKind.SUCCESS: 200,
    OutcomeKind.NOT_FOUND: 404,
    OutcomeKind.FAILED: 500,
    OutcomeKind.REJECTED: 500,
    OutcomeKind.UNOPENED: 500,
    OutcomeKind.UNAVAILABLE: None,
    OutcomeKind.UNKNOWN: None,
    OutcomeKind.LOST: None,
}
SETTINGS = Settings(retry_base_seconds=1, retry_max_seconds=300)

attempts = st.integers(1, 2**31 - 1)
bases = st.floats(0.001, 86400)
chances = st.floats(0, 1)


def outcome(kind: OutcomeKind, **fields: Any) -> Outcome:
    return Outcome.model_validate({"task_id": uuid4(), "attempt": 2, "lease": uuid4(), "kind": kind} | fields)


@given(attempts, bases, bases, chances)
def test_backoff_is_half_to_all_of_what_is_due_and_never_above_the_limit(
    attempt: int, base: float, limit: float, chance: float
) -> None:
    longest = backoff_seconds(attempt, base, limit, 1)
    assert longest == min(limit, base * 2.0 ** min(attempt - 1, 60))
    assert longest / 2 <= backoff_seconds(attempt, base, limit, chance) <= longest <= limit


@given(st.integers(1, 60), bases, chances)
def test_backoff_doubles_with_each_attempt(attempt: int, base: float, chance: float) -> None:
    once, twice = (backoff_seconds(number, base, float("inf"), chance) for number in (attempt, attempt + 1))
    assert twice == 2 * once


@given(attempts, bases, bases, chances)
def test_backoff_never_shrinks(attempt: int, base: float, limit: float, chance: float) -> None:
    assert backoff_seconds(attempt, base, limit, chance) <= backoff_seconds(attempt + 1, base, limit, chance)


@pytest.mark.parametrize("kind", OutcomeKind)
def test_an_answer_of_a_ends_the_task_and_everything_else_is_tried_again(kind: OutcomeKind) -> None:
    given_outcome = outcome(kind, reason="why", hold_seconds=7)
    change = decide(given_outcome, SETTINGS)
    assert change.key == (given_outcome.task_id, 2, given_outcome.lease)
    assert (change.code, change.reason, change.hold_seconds) == (CODES[kind], "why", 7)
    assert (change.unknown, change.lost) == (kind is OutcomeKind.UNKNOWN, kind is OutcomeKind.LOST)
    assert (change.backoff_seconds > 0) == (kind in (OutcomeKind.UNAVAILABLE, OutcomeKind.LOST))


def test_no_reason_is_stored_as_none() -> None:
    assert decide(outcome(OutcomeKind.SUCCESS), SETTINGS).reason is None


@given(attempts)
def test_without_a_wish_of_as_the_backoff_is_that_of_the_attempt(attempt: int) -> None:
    change = decide(outcome(OutcomeKind.UNAVAILABLE, attempt=attempt), SETTINGS)
    longest = backoff_seconds(attempt, 1, 300, 1)
    assert longest / 2 <= change.backoff_seconds <= longest


@pytest.mark.parametrize(("wished", "granted"), [(0, 0), (5, 5), (300, 300), (301, 300), (10**8, 300)])
def test_retry_after_is_honoured_up_to_the_limit(wished: float, granted: float) -> None:
    change = decide(outcome(OutcomeKind.UNAVAILABLE, retry_after_seconds=wished), SETTINGS)
    assert change.backoff_seconds == granted


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.UNAVAILABLE])
def test_retry_after_of_another_outcome_is_not_heard(kind: OutcomeKind) -> None:
    assert decide(outcome(kind, retry_after_seconds=100), SETTINGS).backoff_seconds <= 1


@given(attempts)
def test_the_first_hold_after_a_lost_call_is_that_of_a_first_attempt(attempt: int) -> None:
    assert 0.5 <= decide(outcome(OutcomeKind.LOST, attempt=attempt), SETTINGS).backoff_seconds <= 1
