"""The history of a task: what differs from the straight way, as a list of events in its row.

A task that goes the straight way has none. An event is a JSON object: `at`, `event`, and what else there is of
`attempt`, `outcome`, `reason`, `by`.
"""

MOST = 50
"""So many events are kept; the oldest go first. A device that is away for a day is tried hundreds of times."""


def event(name: str, **fields: str) -> str:
    """Give the SQL of an event that happens now; the fields are SQL, too, and those that are null are left out."""
    pairs = "".join(f", '{key}', {value}" for key, value in fields.items())
    return f"jsonb_strip_nulls(jsonb_build_object('at', now(), 'event', '{name}'{pairs}))"


def grown(event: str) -> str:
    """Give the SQL of a row's history with an event (SQL) at its end; where the event is null, of what it was."""
    return f"""CASE WHEN {event} IS NULL THEN history
        WHEN jsonb_array_length(history) >= {MOST} THEN (history - 0) || {event}
        ELSE coalesce(history, '[]') || {event} END"""
