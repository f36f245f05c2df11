\restrict dbmate

-- Dumped from database version 18.6
-- Dumped by pg_dump version 18.6

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

--
-- Name: finished; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.finished (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    timeout_seconds integer NOT NULL,
    attempt integer NOT NULL,
    code smallint NOT NULL,
    status text NOT NULL,
    equipment_id text NOT NULL COLLATE pg_catalog."C",
    reason text,
    parameters json,
    submitted_by text COLLATE pg_catalog."C",
    external_id text COLLATE pg_catalog."C",
    retry_of uuid,
    sealed_for uuid,
    not_before timestamp with time zone,
    deadline_at timestamp with time zone,
    begun_at timestamp with time zone,
    ended_by text,
    cancel_requested boolean DEFAULT false NOT NULL,
    history jsonb,
    CONSTRAINT finished_code CHECK (
CASE status
    WHEN 'success'::text THEN (code = 200)
    ELSE (code = ANY (ARRAY[404, 500]))
END),
    CONSTRAINT finished_status CHECK ((status = ANY (ARRAY['success'::text, 'error'::text])))
)
PARTITION BY RANGE (id);


SET default_table_access_method = heap;

--
-- Name: finished_default; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.finished_default (
    id uuid CONSTRAINT finished_id_not_null NOT NULL,
    seq bigint CONSTRAINT finished_seq_not_null NOT NULL,
    created_at timestamp with time zone CONSTRAINT finished_created_at_not_null NOT NULL,
    finished_at timestamp with time zone CONSTRAINT finished_finished_at_not_null NOT NULL,
    timeout_seconds integer CONSTRAINT finished_timeout_seconds_not_null NOT NULL,
    attempt integer CONSTRAINT finished_attempt_not_null NOT NULL,
    code smallint CONSTRAINT finished_code_not_null NOT NULL,
    status text CONSTRAINT finished_status_not_null NOT NULL,
    equipment_id text CONSTRAINT finished_equipment_id_not_null NOT NULL COLLATE pg_catalog."C",
    reason text,
    parameters json,
    submitted_by text COLLATE pg_catalog."C",
    external_id text COLLATE pg_catalog."C",
    retry_of uuid,
    sealed_for uuid,
    not_before timestamp with time zone,
    deadline_at timestamp with time zone,
    begun_at timestamp with time zone,
    ended_by text,
    cancel_requested boolean DEFAULT false CONSTRAINT finished_cancel_requested_not_null NOT NULL,
    history jsonb,
    CONSTRAINT finished_code CHECK (
CASE status
    WHEN 'success'::text THEN (code = 200)
    ELSE (code = ANY (ARRAY[404, 500]))
END),
    CONSTRAINT finished_status CHECK ((status = ANY (ARRAY['success'::text, 'error'::text])))
);


--
-- Name: finished_delete_strays(integer, timestamp with time zone, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.finished_delete_strays(retention_days integer, callers_now timestamp with time zone, at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET lock_timeout TO '100ms'
    SET search_path TO 'public', 'pg_temp'
    BEGIN ATOMIC
 WITH deleted AS (
          DELETE FROM public.finished_default
           WHERE (finished_default.id = ANY (ARRAY( SELECT finished_default_1.id
                    FROM public.finished_default finished_default_1
                   WHERE (finished_default_1.finished_at < (LEAST(now(), finished_delete_strays.callers_now) - make_interval(days => (finished_delete_strays.retention_days + 1))))
                   ORDER BY finished_default_1.finished_at
                  LIMIT finished_delete_strays.at_most
                  FOR UPDATE OF finished_default_1 SKIP LOCKED)))
           RETURNING finished_default.id
         )
  SELECT count(*) AS count
    FROM deleted;
END;


--
-- Name: finished_drop_oldest(integer, timestamp with time zone); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.finished_drop_oldest(retention_days integer, callers_now timestamp with time zone) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET lock_timeout TO '100ms'
    SET search_path TO 'public', 'pg_temp'
    AS $_$
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
END $_$;


--
-- Name: finished_first_id(date); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.finished_first_id(day date) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT
    RETURN ((lpad(to_hex(((EXTRACT(epoch FROM day))::bigint * 1000)), 12, '0'::text) || repeat('0'::text, 20)))::uuid;


--
-- Name: finished_make_next(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.finished_make_next() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET lock_timeout TO '100ms'
    SET search_path TO 'public', 'pg_temp'
    AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    missing date := (
        SELECT min(today + ahead) FROM generate_series(0, 7) AS ahead
        WHERE to_regclass('finished_' || to_char(today + ahead, 'YYYYMMDD')) IS NULL
    );
BEGIN
    RETURN CASE WHEN missing IS NOT NULL THEN finished_make_partition(missing) END;
END $$;


--
-- Name: finished_make_partition(date); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.finished_make_partition(day date) RETURNS text
    LANGUAGE plpgsql
    AS $_$
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
END $_$;


--
-- Name: idempotency_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_key (
    submitted_by text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    task_id uuid NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT idempotency_key_digest_check CHECK ((length(digest) = 32)),
    CONSTRAINT idempotency_key_key_check CHECK (((length(key) >= 1) AND (length(key) <= 255)))
);


--
-- Name: idempotency_secret; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_secret (
    one boolean DEFAULT true NOT NULL,
    secret bytea DEFAULT (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) NOT NULL,
    CONSTRAINT idempotency_secret_one_check CHECK (one)
);


--
-- Name: maintenance; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.maintenance (
    one boolean DEFAULT true NOT NULL,
    holder uuid,
    until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    CONSTRAINT maintenance_one_check CHECK (one)
);


--
-- Name: schema_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.schema_migrations (
    version character varying NOT NULL
);


--
-- Name: service_a; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.service_a (
    one boolean DEFAULT true NOT NULL,
    answers bigint DEFAULT 0 NOT NULL,
    silent_ends integer DEFAULT 0 NOT NULL,
    let_through_at timestamp with time zone,
    CONSTRAINT service_a_one_check CHECK (one)
)
WITH (fillfactor='10');


--
-- Name: task; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.task (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    equipment_id text NOT NULL COLLATE pg_catalog."C",
    timeout_seconds integer NOT NULL,
    parameters json NOT NULL,
    time_limit_seconds double precision NOT NULL,
    deadline_at timestamp with time zone NOT NULL,
    active boolean NOT NULL,
    due_at timestamp with time zone,
    attempt integer DEFAULT 0 NOT NULL,
    unknowns smallint DEFAULT 0 NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    dispatched_at timestamp with time zone,
    keep_parameters text DEFAULT 'failed'::text NOT NULL,
    begun_at timestamp with time zone,
    lease uuid,
    overdue_at timestamp with time zone,
    answers_before bigint DEFAULT 0 NOT NULL,
    chances smallint,
    losts smallint DEFAULT 0 NOT NULL,
    submitted_by text COLLATE pg_catalog."C",
    external_id text COLLATE pg_catalog."C",
    retry_of uuid,
    sealed_for uuid,
    not_before timestamp with time zone,
    start_at timestamp with time zone,
    bulk boolean DEFAULT false NOT NULL,
    cancel_requested boolean DEFAULT false NOT NULL,
    history jsonb,
    CONSTRAINT task_active_is_due_or_dispatched CHECK (((NOT active) OR (due_at IS NOT NULL) OR (attempt > 0))),
    CONSTRAINT task_attempt CHECK (((attempt >= 0) AND ((attempt = 0) = (dispatched_at IS NULL)))),
    CONSTRAINT task_begun CHECK (((begun_at IS NULL) OR (active AND (due_at IS NULL) AND (lease IS NOT NULL)))),
    CONSTRAINT task_begun_is_overdue_once CHECK (((begun_at IS NULL) = (overdue_at IS NULL))),
    CONSTRAINT task_chances CHECK (((chances IS NULL) OR ((chances >= 0) AND (due_at IS NOT NULL)))),
    CONSTRAINT task_due_is_active CHECK (((due_at IS NULL) OR active)),
    CONSTRAINT task_equipment_id CHECK ((((length(equipment_id) >= 6) AND (length(equipment_id) <= 128)) AND (equipment_id !~ '[^a-zA-Z0-9]'::text))),
    CONSTRAINT task_external_id CHECK (((length(external_id) >= 1) AND (length(external_id) <= 128))),
    CONSTRAINT task_keep_parameters CHECK ((keep_parameters = ANY (ARRAY['failed'::text, 'all'::text, 'none'::text]))),
    CONSTRAINT task_lease CHECK (((lease IS NULL) OR (attempt > 0))),
    CONSTRAINT task_losts CHECK (((losts >= 0) AND (losts <= attempt))),
    CONSTRAINT task_start CHECK (((start_at IS NULL) OR (NOT active))),
    CONSTRAINT task_times CHECK (((time_limit_seconds >= (timeout_seconds)::double precision) AND (timeout_seconds > 0))),
    CONSTRAINT task_unknowns CHECK (((unknowns >= 0) AND (unknowns <= attempt))),
    CONSTRAINT task_waiting_is_untried CHECK ((active OR (attempt = 0)))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');


--
-- Name: task_begun; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.task_begun
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: task_clock; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.task_clock (
    one boolean DEFAULT true NOT NULL,
    correction interval DEFAULT '00:00:00'::interval NOT NULL,
    CONSTRAINT task_clock_one_check CHECK (one)
);


--
-- Name: task_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.task ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.task_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: finished_default; Type: TABLE ATTACH; Schema: public; Owner: -
--

ALTER TABLE ONLY public.finished ATTACH PARTITION public.finished_default DEFAULT;


--
-- Name: finished finished_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.finished
    ADD CONSTRAINT finished_pkey PRIMARY KEY (id);


--
-- Name: finished_default finished_default_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.finished_default
    ADD CONSTRAINT finished_default_pkey PRIMARY KEY (id);


--
-- Name: finished finished_ended_by; Type: CHECK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE public.finished
    ADD CONSTRAINT finished_ended_by CHECK (((ended_by IS NULL) OR ((ended_by = ANY (ARRAY['cancel'::text, 'deadline'::text])) AND (code = 500)))) NOT VALID;


--
-- Name: idempotency_key idempotency_key_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_key
    ADD CONSTRAINT idempotency_key_pkey PRIMARY KEY (submitted_by, key);


--
-- Name: idempotency_secret idempotency_secret_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_secret
    ADD CONSTRAINT idempotency_secret_pkey PRIMARY KEY (one);


--
-- Name: maintenance maintenance_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.maintenance
    ADD CONSTRAINT maintenance_pkey PRIMARY KEY (one);


--
-- Name: schema_migrations schema_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);


--
-- Name: service_a service_a_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.service_a
    ADD CONSTRAINT service_a_pkey PRIMARY KEY (one);


--
-- Name: task_clock task_clock_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.task_clock
    ADD CONSTRAINT task_clock_pkey PRIMARY KEY (one);


--
-- Name: task task_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.task
    ADD CONSTRAINT task_pkey PRIMARY KEY (id);


--
-- Name: finished_equipment_id_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_equipment_id_id ON ONLY public.finished USING btree (equipment_id, id);


--
-- Name: finished_default_equipment_id_id_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_default_equipment_id_id_idx ON public.finished_default USING btree (equipment_id, id);


--
-- Name: finished_external_id_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_external_id_id ON ONLY public.finished USING btree (external_id, id) WHERE (external_id IS NOT NULL);


--
-- Name: finished_default_external_id_id_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_default_external_id_id_idx ON public.finished_default USING btree (external_id, id) WHERE (external_id IS NOT NULL);


--
-- Name: finished_default_finished_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_default_finished_at ON public.finished_default USING btree (finished_at);


--
-- Name: finished_failures; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_failures ON ONLY public.finished USING btree (id) WHERE (status = 'error'::text);


--
-- Name: finished_default_id_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_default_id_idx ON public.finished_default USING btree (id) WHERE (status = 'error'::text);


--
-- Name: finished_submitted_by_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_submitted_by_id ON ONLY public.finished USING btree (submitted_by, id) WHERE (submitted_by IS NOT NULL);


--
-- Name: finished_default_submitted_by_id_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX finished_default_submitted_by_id_idx ON public.finished_default USING btree (submitted_by, id) WHERE (submitted_by IS NOT NULL);


--
-- Name: idempotency_key_task; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX idempotency_key_task ON public.idempotency_key USING btree (task_id);


--
-- Name: task_active; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX task_active ON public.task USING btree (equipment_id) WHERE active;


--
-- Name: task_chances; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_chances ON public.task USING btree (due_at) WHERE (chances = 0);


--
-- Name: task_deadline; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_deadline ON public.task USING btree (deadline_at) WHERE (begun_at IS NULL);


--
-- Name: task_dispatched; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_dispatched ON public.task USING btree (dispatched_at) WHERE ((active AND (due_at IS NULL) AND (begun_at IS NULL)) IS NOT FALSE);


--
-- Name: task_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_due ON public.task USING btree (bulk, due_at) WHERE (due_at IS NOT NULL);


--
-- Name: task_external_id_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_external_id_id ON public.task USING btree (external_id, id) WHERE (external_id IS NOT NULL);


--
-- Name: task_overdue; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_overdue ON public.task USING btree (overdue_at) WHERE (begun_at IS NOT NULL);


--
-- Name: task_scheduled; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_scheduled ON public.task USING btree (equipment_id) WHERE ((NOT active) AND (start_at IS NOT NULL));


--
-- Name: task_start; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_start ON public.task USING btree (start_at) WHERE (start_at IS NOT NULL);


--
-- Name: task_submitted_by; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_submitted_by ON public.task USING btree (bulk, submitted_by, due_at) WHERE (submitted_by IS NOT NULL);


--
-- Name: task_waiting; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_waiting ON public.task USING btree (equipment_id, seq) WHERE ((NOT active) AND (start_at IS NULL));


--
-- Name: finished_default_equipment_id_id_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.finished_equipment_id_id ATTACH PARTITION public.finished_default_equipment_id_id_idx;


--
-- Name: finished_default_external_id_id_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.finished_external_id_id ATTACH PARTITION public.finished_default_external_id_id_idx;


--
-- Name: finished_default_id_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.finished_failures ATTACH PARTITION public.finished_default_id_idx;


--
-- Name: finished_default_pkey; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.finished_pkey ATTACH PARTITION public.finished_default_pkey;


--
-- Name: finished_default_submitted_by_id_idx; Type: INDEX ATTACH; Schema: public; Owner: -
--

ALTER INDEX public.finished_submitted_by_id ATTACH PARTITION public.finished_default_submitted_by_id_idx;


--
-- PostgreSQL database dump complete
--

\unrestrict dbmate


--
-- Dbmate schema migrations
--

INSERT INTO public.schema_migrations (version) VALUES
    ('20261123000000'),
    ('20261125100000'),
    ('20261125110000'),
    ('20261125120000'),
    ('20261125130000'),
    ('20261126100000'),
    ('20261126120000'),
    ('20261126121000'),
    ('20261126130000');
