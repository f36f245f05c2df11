"""The states of an unfinished task as SQL conditions on its row, and the time they are judged by.

The package's docstring says what they mean. The indexes of db/migrations are made for the same words.
"""

NOW = "(SELECT now() + correction FROM task_clock)"
"""Internal time, in SQL: what `start_at`, `due_at`, `deadline_at`, `dispatched_at`, `begun_at` and `overdue_at` are set
by and compared with. See `clock`.

What people are told (`created_at`, `finished_at`) is the database's plain clock.
"""

LATELY = "(SELECT until - interval '15 s' FROM maintenance)"
"""Internal time when the process that leads the maintenance looked last: now it is not less, whatever the clock says.

For a process that has just started, and does not know yet whether to believe the clock.
"""

CORRECTION = "(SELECT correction FROM task_clock)"
"""Internal time less this is the plain clock."""

WAITING = "(NOT active AND start_at IS NULL)"
"""Another task of its device comes first."""

SCHEDULED = "(NOT active AND start_at IS NOT NULL)"
"""It takes its place in the line of its device at `start_at`."""

DUE = "due_at IS NOT NULL"
"""Its next attempt may be dispatched at `due_at`, which may lie in the future."""

DISPATCHED = "(active AND due_at IS NULL AND begun_at IS NULL) IS NOT FALSE"
"""An attempt is on its way, and nobody has begun its call.

So written, PostgreSQL does not see that it is active, and does not look for it among all that are.
"""

RUNNING = "begun_at IS NOT NULL"
"""A call of service A is under way, under `lease`; its outcome is awaited until `overdue_at`."""

COUNTS = "chances IS NOT NULL AND answers_before < (SELECT answers FROM service_a)"
"""The last attempt ended without an answer, and uses up a chance: service A has answered somebody since it began."""

USED_UP = "chances = 0 AND answers_before < (SELECT answers FROM service_a)"
"""That was the last one."""

NOT_BEGUN = "begun_at IS NULL"
"""Waiting, due or dispatched: service A has nothing to do with it, unless `due_at` lies in the future and holds the
device."""
