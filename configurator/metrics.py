"""What the configurator counts."""

from prometheus_client import Counter, Gauge, Histogram

from messaging.messages import OutcomeKind

CALLS = Histogram(
    "service_a_call_seconds",
    "Calls to service A, by outcome",
    ["outcome"],
    buckets=(0.1, 0.5, 1, 5, 10, 30, 50, 60, 61, 62, 65, 75, 90, 120, 300, 3600),
)
CALL_SECONDS = {kind: CALLS.labels(kind.value) for kind in OutcomeKind}
"""Looked up once, not for each call."""
IN_FLIGHT = Gauge("service_a_calls_in_flight", "Calls to service A that have not ended")
PAUSED = Gauge("service_a_unreachable", "1 while no work is taken because service A cannot be reached")
KEYLESS = Gauge("seal_key_missing", "1 while no work is taken because tasks are sealed for a key that is not here")
SILENT_ENDS = Gauge("service_a_silent_ends", "Calls in a row that ended without an answer of service A's own")
LATE = Counter("calls_late", "Calls that were not made because their leases came late, or the process stood still")
OUTCOMES = Counter("outcomes_published", "Outcomes confirmed by the broker, by kind", ["kind"])
OUTCOMES_OF = {kind: OUTCOMES.labels(kind.value) for kind in OutcomeKind}
"""Likewise, for each outcome."""
LEASES = Counter("leases_asked", "Leases asked for, by the answer", ["answer"])
LEASE_SECONDS = Histogram(
    "lease_seconds",
    "From when a lease was asked for first to its grant or refusal",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
