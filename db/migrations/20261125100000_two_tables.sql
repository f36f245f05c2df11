-- migrate:up
-- The table is locked for as long as it takes to move what has ended:
-- squawk-ignore-file ban-drop-column, constraint-missing-not-valid, require-concurrent-index-creation, require-concurrent-index-deletion
SET LOCAL lock_timeout = '10s';
LOCK TABLE task IN ACCESS EXCLUSIVE MODE;

-- What has ended, for good: nothing here is changed any more. Ids are UUIDv7, so a day of acceptance is a range of them.
CREATE TABLE finished (
    id uuid PRIMARY KEY,
    seq bigint NOT NULL,
    created_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    timeout_seconds integer NOT NULL,
    attempt integer NOT NULL,
    -- What a client is told: 200, 404 or 500.
    code smallint NOT NULL,
    status text NOT NULL,
    equipment_id text COLLATE "C" NOT NULL,
    -- The last attempt's.
    reason text,
    -- Null where they are forgotten.
    parameters json,

    CONSTRAINT finished_status CHECK (status IN ('success', 'error')),
    CONSTRAINT finished_code CHECK (CASE status WHEN 'success' THEN code = 200 ELSE code IN (404, 500) END)
) PARTITION BY RANGE (id);

-- For ids that no partition is made for: of a clock that is far off, or of no UUIDv7.
CREATE TABLE finished_default PARTITION OF finished DEFAULT;
CREATE INDEX finished_default_finished_at ON finished_default (finished_at);

-- The least id of a day (UTC): a UUIDv7 begins with the milliseconds since 1970, in 48 bits.
CREATE FUNCTION finished_first_id(day date) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT
RETURN (lpad(to_hex(extract(epoch FROM day)::bigint * 1000), 12, '0') || repeat('0', 20))::uuid;

CREATE FUNCTION finished_make_partition(day date) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    partition text := 'finished_' || to_char(day, 'YYYYMMDD');
    first uuid := finished_first_id(day);
    after uuid := finished_first_id(day + 1);
BEGIN
    -- Made beside the table and attached: so its readers need not wait for that.
    EXECUTE format('CREATE TABLE %I (LIKE finished INCLUDING ALL)', partition);
    -- Whoever is writing has ended, and whoever follows sees the new partition: else its row would be refused.
    LOCK TABLE finished IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE finished_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'WITH moved AS (DELETE FROM finished_default WHERE id >= $1 AND id < $2 RETURNING *) '
        'INSERT INTO %I SELECT * FROM moved', partition
    ) USING first, after;
    EXECUTE format('ALTER TABLE finished ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', partition, first, after);
    RETURN partition;
END $$;

-- The three that follow are for the services, whose role need not own the tables. Each does a little in a transaction,
-- and gives up where it cannot have a lock: meanwhile others wait behind it.

-- Makes the first partition that is missing of today and a week ahead; null if none is.
CREATE FUNCTION finished_make_next() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '100ms' AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    missing date := (
        SELECT min(today + ahead) FROM generate_series(0, 7) AS ahead
        WHERE to_regclass('finished_' || to_char(today + ahead, 'YYYYMMDD')) IS NULL
    );
BEGIN
    RETURN CASE WHEN missing IS NOT NULL THEN finished_make_partition(missing) END;
END $$;

-- Drops the oldest partition, if what was accepted last in it is that old; null if it is not. Of our clock and the
-- caller's it believes the earlier one: a clock that is ahead must not drop anything.
CREATE FUNCTION finished_drop_oldest(retention_days integer, callers_now timestamptz) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '100ms' AS $$
DECLARE
    today date := (least(now(), callers_now) AT TIME ZONE 'UTC')::date;
    partition text := (
        SELECT min(relname) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'finished'::regclass AND relname ~ '^finished_\d{8}$'
          AND relname < 'finished_' || to_char(today - retention_days, 'YYYYMMDD')
    );
BEGIN
    IF partition IS NOT NULL THEN
        EXECUTE format('DROP TABLE %I', partition);
    END IF;
    RETURN partition;
END $$;

-- Deletes rows of the default partition that ended that long ago; says how many.
CREATE FUNCTION finished_delete_strays(retention_days integer, callers_now timestamptz, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET lock_timeout = '100ms'
BEGIN ATOMIC
    WITH deleted AS (
        DELETE FROM finished_default WHERE id = ANY(ARRAY(
            SELECT id FROM finished_default
            WHERE finished_at < least(now(), callers_now) - make_interval(days => retention_days + 1)
            ORDER BY finished_at LIMIT at_most FOR UPDATE SKIP LOCKED
        )) RETURNING id
    )
    SELECT count(*) FROM deleted;
END;

-- Who calls a function of ours must not choose what its names mean.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['finished_make_next', 'finished_drop_oldest', 'finished_delete_strays'] LOOP
        EXECUTE format('ALTER FUNCTION %I SET search_path = %I, pg_temp', name, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %I FROM PUBLIC', name);
    END LOOP;
END $$;

-- Partitions for what there is, and for the days to come. Ids that do not tell their time are none of theirs.
SELECT finished_make_partition(day) FROM (
    SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date AS day FROM task
    WHERE status <> 'pending' AND id >= finished_first_id((created_at AT TIME ZONE 'UTC')::date)
      AND id < finished_first_id((created_at AT TIME ZONE 'UTC')::date + 1)
    UNION
    SELECT (now() AT TIME ZONE 'UTC')::date + ahead FROM generate_series(0, 7) AS ahead
) AS days ORDER BY day;

INSERT INTO finished (id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id, reason,
                      parameters)
SELECT id, seq, created_at, finished_at, timeout_seconds, attempt, code, status, equipment_id, reason, parameters
FROM task WHERE status <> 'pending';
DELETE FROM task WHERE status <> 'pending';

-- What says something of these columns goes with them: five constraints, and the indexes that are made again below.
ALTER TABLE task DROP COLUMN status, DROP COLUMN code, DROP COLUMN finished_at;
ALTER TABLE task
    -- Whose parameters are kept when it ends: of a task that failed, of all, of none.
    ADD COLUMN keep_parameters text NOT NULL DEFAULT 'failed',
    ADD CONSTRAINT task_keep_parameters CHECK (keep_parameters IN ('failed', 'all', 'none')),
    ADD CONSTRAINT task_waiting_is_untried CHECK (active OR attempt = 0),
    -- Not another type, but this writes the table anew: what has been moved takes no room in it.
    -- squawk-ignore changing-column-type
    ALTER COLUMN attempt TYPE integer USING attempt + 0;
DROP INDEX task_dispatched;
CREATE INDEX task_dispatched ON task (dispatched_at) WHERE (active AND due_at IS NULL) IS NOT FALSE;
CREATE INDEX task_waiting ON task (equipment_id, seq) WHERE NOT active;
CREATE INDEX task_deadline ON task (deadline_at) WHERE (active AND due_at IS NULL) IS FALSE;

-- migrate:down
SET LOCAL lock_timeout = '10s';
LOCK TABLE task, finished IN ACCESS EXCLUSIVE MODE;

DROP INDEX task_waiting, task_deadline, task_dispatched;
ALTER TABLE task
    DROP CONSTRAINT task_waiting_is_untried,
    DROP COLUMN keep_parameters,
    ADD COLUMN status text NOT NULL DEFAULT 'pending',
    ADD COLUMN code smallint,
    ADD COLUMN finished_at timestamptz,
    ADD CONSTRAINT task_status CHECK (status IN ('pending', 'success', 'error')),
    ADD CONSTRAINT task_finished CHECK (num_nulls(finished_at, code) = CASE status WHEN 'pending' THEN 2 ELSE 0 END),
    ADD CONSTRAINT task_code CHECK (
        CASE status WHEN 'pending' THEN code IS NULL WHEN 'success' THEN code = 200 ELSE code IN (404, 500) END
    ),
    ADD CONSTRAINT task_active_is_pending CHECK (status = 'pending' OR NOT active),
    ADD CONSTRAINT task_waiting_is_untried CHECK (status <> 'pending' OR active OR attempt = 0);

-- What nobody asks of a finished task is not known any more: how long its calls could take, and its times.
INSERT INTO task (id, seq, equipment_id, timeout_seconds, parameters, time_limit_seconds, deadline_at, status, active,
                  attempt, reason, code, created_at, dispatched_at, finished_at)
OVERRIDING SYSTEM VALUE
SELECT id, seq, equipment_id, timeout_seconds, coalesce(parameters, 'null'), timeout_seconds, finished_at, status, false,
       attempt, reason, code, created_at, CASE WHEN attempt > 0 THEN created_at END, finished_at
FROM finished;
CREATE INDEX task_waiting ON task (equipment_id, seq) WHERE status = 'pending' AND NOT active;
CREATE INDEX task_dispatched ON task (dispatched_at) WHERE active AND due_at IS NULL;
CREATE INDEX task_deadline ON task (deadline_at) WHERE status = 'pending' AND (active AND due_at IS NULL) IS FALSE;

DROP FUNCTION finished_delete_strays, finished_drop_oldest, finished_make_next, finished_make_partition;
DROP TABLE finished;
DROP FUNCTION finished_first_id;
