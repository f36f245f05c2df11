"""How a task ends: it is moved from the table of the unfinished to that of the finished."""

from service_b.tasks.deployment import ENDED
from service_b.tasks.history import grown

MOVE = f"""
gone AS (
    DELETE FROM task USING ending
    WHERE task.id = ending.id
      -- Says the same once more: so the table is never read but by its key, whatever the statistics say.
      AND task.id = ANY(ARRAY(SELECT id FROM ending))
    RETURNING task.*, ending.code, ending.reason AS last_reason, ending.ended_by,
        ending.event
), moved AS (
    INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id,
                          reason, parameters, submitted_by, external_id, retry_of, sealed_for, not_before, deadline_at,
                          begun_at, ended_by, cancel_requested, history)
    SELECT id, seq, created_at, now(), timeout_seconds, attempt, code,
           CASE code WHEN 200 THEN 'success' ELSE 'error' END, equipment_id, last_reason,
           CASE WHEN keep_parameters = 'all' OR keep_parameters = 'failed' AND code <> 200 THEN parameters END,
           submitted_by, external_id, retry_of, sealed_for, not_before, deadline_at, begun_at, ended_by,
           cancel_requested, {grown("event")}
    FROM gone
    RETURNING id, attempt, equipment_id, created_at, ended_by
), told AS MATERIALIZED (
    -- At the commit, those who wait for the ends; 200 ids, since a notification holds 8,000 bytes.
    SELECT pg_notify({ENDED}, string_agg(id::text, ','))
    FROM (SELECT id, row_number() OVER () AS number FROM moved) AS numbered GROUP BY (number - 1) / 200
), ended AS (
    SELECT * FROM moved WHERE (SELECT count(*) FROM told) > 0
)
"""
"""Parts of a statement's WITH, after one called `ending` (id, code, reason, ended_by, and an event of its
history or null), its rows of `task` locked.

Who sends such a statement promotes the next tasks of the devices in `ended`, within its transaction and after it.
"""
