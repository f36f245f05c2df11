-- squawk-ignore-file constraint-missing-not-valid, require-concurrent-index-creation, require-concurrent-index-deletion
-- What is read and blocked here is the table of what is not finished, which is small.

-- migrate:up
SET LOCAL lock_timeout = '10s';

ALTER TABLE task
    -- The call that is under way: since when, under which lease, and when it is given up for lost. The lease stays when
    -- the call has ended, until the next attempt: so its late answer is known, and a copy of its message begins nothing.
    ADD COLUMN begun_at timestamptz,
    ADD COLUMN lease uuid,
    ADD COLUMN overdue_at timestamptz,
    -- What `service_a.answers` was when the call began.
    ADD COLUMN answers_before bigint NOT NULL DEFAULT 0,
    -- The last attempt ended without an answer, and it is not decided yet whether that counts: how many more such ends
    -- are allowed if it does.
    ADD COLUMN chances smallint,
    -- Calls whose process was lost.
    ADD COLUMN losts smallint NOT NULL DEFAULT 0;

-- Messages of before may be called for by processes that ask for no lease: their devices are left alone for as long as
-- such a call may take. Those that ask may begin them at once.
UPDATE task SET due_at = now() + make_interval(secs => time_limit_seconds + 10) WHERE active AND due_at IS NULL;

ALTER TABLE task
    ADD CONSTRAINT task_begun CHECK (begun_at IS NULL OR (active AND due_at IS NULL AND lease IS NOT NULL)),
    ADD CONSTRAINT task_begun_is_overdue_once CHECK ((begun_at IS NULL) = (overdue_at IS NULL)),
    ADD CONSTRAINT task_lease CHECK (lease IS NULL OR attempt > 0),
    ADD CONSTRAINT task_chances CHECK (chances IS NULL OR (chances >= 0 AND due_at IS NOT NULL)),
    ADD CONSTRAINT task_losts CHECK (losts BETWEEN 0 AND attempt);

-- Attempts that nobody has begun, and calls without an outcome.
DROP INDEX task_dispatched;
CREATE INDEX task_dispatched ON task (dispatched_at) WHERE (active AND due_at IS NULL AND begun_at IS NULL) IS NOT FALSE;
-- What may end at its deadline.
DROP INDEX task_deadline;
CREATE INDEX task_deadline ON task (deadline_at) WHERE begun_at IS NULL;
CREATE INDEX task_overdue ON task (overdue_at) WHERE begun_at IS NOT NULL;
-- Tasks whose last chance is gone, if service A has answered somebody.
CREATE INDEX task_chances ON task (due_at) WHERE chances = 0;

-- What is known of service A: one row.
CREATE TABLE service_a (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- Grows when service A has answered somebody, at most once a second for each process that hears of it.
    answers bigint NOT NULL DEFAULT 0,
    -- Ends in a row without an answer of its own.
    silent_ends integer NOT NULL DEFAULT 0,
    -- When a task was let through last while service A is spared.
    let_through_at timestamptz
) WITH (fillfactor = 10);
INSERT INTO service_a DEFAULT VALUES;

-- migrate:down
SET LOCAL lock_timeout = '10s';

DROP TABLE service_a;
-- What is not decided counts, as it did before; a task without chances ends as soon as its device is free.
UPDATE task SET unknowns = unknowns + 1, deadline_at = CASE WHEN chances = 0 THEN least(deadline_at, due_at) ELSE deadline_at END
WHERE chances IS NOT NULL;
DROP INDEX task_dispatched, task_overdue, task_chances, task_deadline;
ALTER TABLE task
    DROP CONSTRAINT task_begun,
    DROP CONSTRAINT task_begun_is_overdue_once,
    DROP CONSTRAINT task_lease,
    DROP CONSTRAINT task_chances,
    DROP CONSTRAINT task_losts,
    DROP COLUMN begun_at,
    DROP COLUMN lease,
    DROP COLUMN overdue_at,
    DROP COLUMN answers_before,
    DROP COLUMN chances,
    DROP COLUMN losts;
CREATE INDEX task_dispatched ON task (dispatched_at) WHERE (active AND due_at IS NULL) IS NOT FALSE;
CREATE INDEX task_deadline ON task (deadline_at) WHERE (active AND due_at IS NULL) IS FALSE;
