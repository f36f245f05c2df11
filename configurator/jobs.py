"""A task in the configurator's hands."""

import math
from dataclasses import dataclass, field
from uuid import UUID

from uuid_utils.compat import uuid4

from messaging.deliveries import Delivery
from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from runtime.clock import now

LATENESS_SECONDS = 5.0
"""How long after its lease was asked for a call may begin."""
LATENESS_SHARE = 1 / 4
"""Of its limit, where that is shorter: with little left a call would end unknown, and A be at work for longer."""


@dataclass(slots=True, eq=False)
class Job:
    """A task brought by a delivery, until its outcome is with the broker; its call may never begin.

    `lease`: made for this one call. `asked_at`: when it was asked for first, by `runtime.clock`; the database has
    written down a later time, so that what is counted from here ends before what is counted there. `parameters`: JSON
    text, sealed until the call begins if it came so.
    """

    task: ConfigureTask
    delivery: Delivery
    lease: UUID = field(default_factory=uuid4)
    asked_at: float = math.inf
    parameters: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the parameters as they came."""
        self.parameters = self.task.parameters

    @property
    def seconds_left(self) -> float:
        """How long its call may take from now on."""
        return self.task.time_limit_seconds - (now() - self.asked_at)

    @property
    def is_late(self) -> bool:
        """Whether its call must not begin any more: the lease came late, or the process stood still."""
        return now() - self.asked_at > min(LATENESS_SECONDS, LATENESS_SHARE * self.task.time_limit_seconds)

    def end(
        self,
        kind: OutcomeKind,
        reason: str,
        *,
        hold_seconds: float = 0,
        retry_after_seconds: float | None = None,
    ) -> Outcome:
        """Say what came of it."""
        return Outcome(
            task_id=self.task.task_id,
            attempt=self.task.attempt,
            lease=self.lease,
            kind=kind,
            reason=reason,
            hold_seconds=hold_seconds,
            retry_after_seconds=retry_after_seconds,
        )

    def hand_back(self, reason: str) -> Outcome:
        """Say that it has its lease and no call was made: it may be tried again at once."""
        return self.end(OutcomeKind.UNAVAILABLE, f"not called: {reason}", retry_after_seconds=0)
