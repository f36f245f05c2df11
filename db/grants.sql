-- What the services may do, all of it: run after each migration by the role that owns the tables. Running it again
-- changes nothing. The role that it is granted to is named by the session's setting cpe.service.
DO $$
DECLARE
    service text := current_setting('cpe.service');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), service);
    -- By the partitioned table's name alone: a partition is nobody's to read or write by its own.
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE, DELETE ON task, finished, service_a, task_clock, maintenance, idempotency_key TO %I',
        service
    );
    EXECUTE format('GRANT SELECT ON idempotency_secret TO %I', service);
    EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE task_begun TO %I', service);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION finished_make_next, finished_drop_oldest, finished_delete_strays TO %I', service
    );
    -- Everybody may call a new function unless it is said otherwise; this one is a part of those above.
    REVOKE ALL ON FUNCTION finished_make_partition FROM PUBLIC;
END $$;
