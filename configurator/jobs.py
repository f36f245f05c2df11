"""A task in the configurator's hands."""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

from messaging.deliveries import Delivery
from messaging.messages import ConfigureTask, Outcome, OutcomeKind
from runtime.clock import now

Key = tuple[UUID, int]
"""One attempt at one task."""


@dataclass(slots=True, eq=False)
class Job:
    """A task taken, until its outcome is with the broker; its call may never begin.

    `deliveries` are all that brought it: after a lost connection the broker brings a running job's task once more,
    and only that delivery can still be acknowledged. `lease`: made for this one call. `asked_at`: when it was asked for
    first; this and `taken_at` by `runtime.clock`.
    """

    task: ConfigureTask
    deliveries: list[Delivery]
    taken_at: float = field(default_factory=now)
    lease: UUID = field(default_factory=uuid4)
    asked_at: float | None = None

    @property
    def key(self) -> Key:
        """Which attempt at which task this is."""
        return self.task.task_id, self.task.attempt


def without_answer(task: ConfigureTask, kind: OutcomeKind, hold_seconds: float = 0) -> Outcome:
    """Make the outcome of an attempt for which this process has no answer of service A's."""
    return Outcome(task_id=task.task_id, attempt=task.attempt, kind=kind, hold_seconds=hold_seconds)
