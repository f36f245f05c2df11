"""What both processes of service B count."""

from prometheus_client import Counter, Gauge, Histogram

ACCEPTED = Counter("tasks_accepted", "Tasks stored")
TOO_MANY = Counter("tasks_too_many", "Tasks refused since the device, or the token, has too many already", ["of"])
WAITING = Gauge("requests_waiting", "Requests that wait for the end of a task")
DISPATCHED = Counter("tasks_dispatched", "Attempts handed to the broker", ["publication"])
SPARED = Gauge("service_a_spared", "Whether service A gets one call every few seconds only, as it answers none")
LOST_DISPATCHES = Counter("tasks_lost_dispatches", "Messages that nobody had begun in time: their tasks are due again")
LOST_CALLS = Counter("tasks_lost_calls", "Reports of calls that had no outcome in time")
CANCELLED = Counter("tasks_cancelled", "Tasks ended because somebody cancelled them")
EXPIRED = Counter("tasks_expired", "Tasks ended at their deadline")
LEADING = Gauge("maintenance_leading", "1 in the process that does the maintenance")
ROUND_AGE = Gauge("maintenance_round_age_seconds", "How long ago this process last did it, or asked for its turn")
CLOCK_JUMPS = Counter("clock_jumps", "Corrections of internal time, because the database's clock had jumped")
STRANDED = Counter("tasks_stranded", "Waiting tasks found with nothing in front of them")
LEASES = Counter("leases", "Calls of service A that were asked for, by the answer", ["answer"])
OUTCOMES = Counter("outcomes", "Outcomes written down, by kind; `ignored` were late, repeated or unknown", ["kind"])
FINISHED = Counter("tasks_finished", "Tasks that got their final status", ["code"])
TASK_SECONDS = Histogram(
    "task_seconds", "From acceptance to the final status", buckets=(1, 5, 15, 30, 60, 65, 70, 90, 120, 300, 900, 3600)
)
