-- The roles of migrate.sh: run by an administrator, who need not be there afterwards. Running it again changes nothing
-- but the passwords.
--
-- Names and passwords come as settings of the session (cpe.…), so that no statement, and no log of them, shows one.
SET LOCAL lock_timeout = '10s';

DO $$
DECLARE
    migrator text := current_setting('cpe.migrator');
    service text := current_setting('cpe.service');
    here text := current_schema();
    object record;
BEGIN
    FOR object IN SELECT * FROM (VALUES
        (migrator, current_setting('cpe.migrator_password')), (service, current_setting('cpe.service_password'))
    ) AS wanted (role, password) LOOP
        IF to_regrole(quote_ident(object.role)) IS NULL THEN
            EXECUTE format('CREATE ROLE %I', object.role);
        END IF;
        EXECUTE format(
            'ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD %L',
            object.role, object.password
        );
    END LOOP;

    -- Nobody else comes in, and nobody but the migrations makes anything here, be it for the time of a session.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I, %I', current_database(), migrator, service);
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', here);
    EXECUTE format('ALTER SCHEMA %I OWNER TO %I', here, migrator);

    -- What an administrator's migrations have made before there were roles.
    FOR object IN
        SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = here::regnamespace AND relkind IN ('r', 'p') AND relowner <> quote_ident(migrator)::regrole
          AND (relname ~ '^finished_(default|\d{8})$'
               OR relname IN ('schema_migrations', 'task', 'finished', 'service_a', 'task_clock', 'maintenance',
                              'idempotency_key', 'idempotency_secret'))
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', object.name, migrator);
    END LOOP;
    FOR object IN
        SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = here::regnamespace AND relname = 'task_begun' AND relowner <> quote_ident(migrator)::regrole
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNER TO %I', object.name, migrator);
    END LOOP;
    FOR object IN
        SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = here::regnamespace AND proowner <> quote_ident(migrator)::regrole
          AND proname ~ '^finished_(first_id|make_partition|make_next|drop_oldest|delete_strays)$'
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', object.name, migrator);
    END LOOP;
END $$;
