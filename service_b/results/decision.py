"""What an outcome does to its task: pure functions."""

import random

from messaging.messages import Outcome, OutcomeKind
from service_b.results.settings import Settings
from service_b.tasks.outcomes import Change

ANSWERED = {
    OutcomeKind.SUCCESS: 200,
    OutcomeKind.NOT_FOUND: 404,
    OutcomeKind.FAILED: 500,
    OutcomeKind.REJECTED: 500,
}
"""The final outcomes by service A's own answer, and what a client is told of them."""
CODES = ANSWERED | {OutcomeKind.UNOPENED: 500}
"""All final ones."""


def backoff_seconds(attempt: int, base: float, limit: float, chance: float) -> float:
    """Return how long to wait after attempt 1, 2, ...: doubling from `base` to `limit`, of that a half to all.

    `chance` (0 to 1) decides: tasks that failed together do not come back together.
    """
    return min(limit, base * 2.0 ** min(attempt - 1, 60)) * (0.5 + chance / 2)


def decide(outcome: Outcome, settings: Settings) -> Change:
    """Finish the task, or say when it may be tried again."""
    code = CODES.get(outcome.kind)
    lost = outcome.kind is OutcomeKind.LOST
    backoff = 0.0
    if outcome.kind is OutcomeKind.UNAVAILABLE and outcome.retry_after_seconds is not None:
        backoff = min(outcome.retry_after_seconds, settings.retry_max_seconds)
    elif outcome.kind is OutcomeKind.UNAVAILABLE or lost:
        # How many calls were lost before, the statement knows.
        attempt = 1 if lost else outcome.attempt
        backoff = backoff_seconds(
            attempt, settings.retry_base_seconds, settings.retry_max_seconds, chance=random.random()
        )
    return Change(
        id=outcome.task_id,
        attempt=outcome.attempt,
        lease=outcome.lease,
        code=code,
        reason=outcome.reason or None,
        hold_seconds=outcome.hold_seconds,
        backoff_seconds=backoff,
        unknown=outcome.kind is OutcomeKind.UNKNOWN,
        lost=lost,
        outcome=None if code == 200 else outcome.kind.value,
    )
