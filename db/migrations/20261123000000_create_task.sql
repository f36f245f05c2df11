-- migrate:up
CREATE TABLE task (
    id uuid PRIMARY KEY,
    -- The order of acceptance: a task that was sent after another one had been accepted has a higher one.
    seq bigint GENERATED ALWAYS AS IDENTITY,
    equipment_id text COLLATE "C" NOT NULL,
    -- What service A is asked; json, not jsonb, so that it goes through as it came.
    timeout_seconds integer NOT NULL,
    parameters json NOT NULL,
    -- How long one call may take, and until when the task may be tried.
    time_limit_seconds double precision NOT NULL,
    deadline_at timestamptz NOT NULL,

    status text NOT NULL DEFAULT 'pending',
    -- True for the one task that may configure its device now; a pending one that is not active waits for it.
    active boolean NOT NULL,
    -- When the next attempt may be dispatched; null while waiting, dispatched or finished.
    due_at timestamptz,
    attempt integer NOT NULL DEFAULT 0,
    -- Attempts that ended without service A's answer.
    unknowns smallint NOT NULL DEFAULT 0,
    -- The last attempt's reason; once finished, the task's. The code is what a client is told: 200, 404 or 500.
    reason text,
    code smallint,

    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    dispatched_at timestamptz,
    finished_at timestamptz,

    CONSTRAINT task_equipment_id CHECK (equipment_id ~ '^[a-zA-Z0-9]{6,128}$'),
    CONSTRAINT task_status CHECK (status IN ('pending', 'success', 'error')),
    CONSTRAINT task_finished CHECK (num_nulls(finished_at, code) = CASE status WHEN 'pending' THEN 2 ELSE 0 END),
    CONSTRAINT task_code CHECK (
        CASE status WHEN 'pending' THEN code IS NULL WHEN 'success' THEN code = 200 ELSE code IN (404, 500) END
    ),
    CONSTRAINT task_active_is_pending CHECK (status = 'pending' OR NOT active),
    CONSTRAINT task_due_is_active CHECK (due_at IS NULL OR active),
    CONSTRAINT task_attempt CHECK (attempt >= 0 AND (attempt = 0) = (dispatched_at IS NULL)),
    CONSTRAINT task_active_is_due_or_dispatched CHECK (NOT active OR due_at IS NOT NULL OR attempt > 0),
    CONSTRAINT task_waiting_is_untried CHECK (status <> 'pending' OR active OR attempt = 0),
    CONSTRAINT task_times CHECK (time_limit_seconds >= timeout_seconds AND timeout_seconds > 0),
    CONSTRAINT task_unknowns CHECK (unknowns BETWEEN 0 AND attempt)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- One configuration per device at a time.
CREATE UNIQUE INDEX task_active ON task (equipment_id) WHERE active;
-- A device's next task.
CREATE INDEX task_waiting ON task (equipment_id, seq) WHERE status = 'pending' AND NOT active;
-- What the relay claims.
CREATE INDEX task_due ON task (due_at) WHERE due_at IS NOT NULL;
-- What the reconciler looks at: attempts without an outcome, and what may expire.
CREATE INDEX task_dispatched ON task (dispatched_at) WHERE active AND due_at IS NULL;
CREATE INDEX task_deadline ON task (deadline_at) WHERE status = 'pending' AND (active AND due_at IS NULL) IS FALSE;

-- migrate:down
DROP TABLE task;
