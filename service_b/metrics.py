"""What both processes of service B count."""

from prometheus_client import Counter, Histogram

ACCEPTED = Counter("tasks_accepted", "Tasks stored")
DISPATCHED = Counter("tasks_dispatched", "Attempts handed to the broker", ["publication"])
OVERDUE = Counter("tasks_overdue", "Attempts without an outcome in time, reported as unknown")
EXPIRED = Counter("tasks_expired", "Tasks ended at their deadline")
STRANDED = Counter("tasks_stranded", "Waiting tasks found with nothing in front of them")
OUTCOMES = Counter("outcomes", "Outcomes written down, by kind; `ignored` were late, repeated or unknown", ["kind"])
FINISHED = Counter("tasks_finished", "Tasks that got their final status", ["code"])
TASK_SECONDS = Histogram(
    "task_seconds", "From acceptance to the final status", buckets=(1, 5, 15, 30, 60, 65, 70, 90, 120, 300, 900, 3600)
)
