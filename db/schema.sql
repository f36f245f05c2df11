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

SET default_table_access_method = heap;

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
    status text DEFAULT 'pending'::text NOT NULL,
    active boolean NOT NULL,
    due_at timestamp with time zone,
    attempt integer DEFAULT 0 NOT NULL,
    unknowns smallint DEFAULT 0 NOT NULL,
    reason text,
    code smallint,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    dispatched_at timestamp with time zone,
    finished_at timestamp with time zone,
    begun_at timestamp with time zone,
    lease uuid,
    overdue_at timestamp with time zone,
    answers_before bigint DEFAULT 0 NOT NULL,
    chances smallint,
    losts smallint DEFAULT 0 NOT NULL,
    CONSTRAINT task_active_is_due_or_dispatched CHECK (((NOT active) OR (due_at IS NOT NULL) OR (attempt > 0))),
    CONSTRAINT task_active_is_pending CHECK (((status = 'pending'::text) OR (NOT active))),
    CONSTRAINT task_attempt CHECK (((attempt >= 0) AND ((attempt = 0) = (dispatched_at IS NULL)))),
    CONSTRAINT task_begun CHECK (((begun_at IS NULL) OR (active AND (due_at IS NULL) AND (lease IS NOT NULL)))),
    CONSTRAINT task_begun_is_overdue_once CHECK (((begun_at IS NULL) = (overdue_at IS NULL))),
    CONSTRAINT task_chances CHECK (((chances IS NULL) OR ((chances >= 0) AND (due_at IS NOT NULL)))),
    CONSTRAINT task_code CHECK (
CASE status
    WHEN 'pending'::text THEN (code IS NULL)
    WHEN 'success'::text THEN (code = 200)
    ELSE (code = ANY (ARRAY[404, 500]))
END),
    CONSTRAINT task_due_is_active CHECK (((due_at IS NULL) OR active)),
    CONSTRAINT task_equipment_id CHECK ((equipment_id ~ '^[a-zA-Z0-9]{6,128}$'::text)),
    CONSTRAINT task_finished CHECK ((num_nulls(finished_at, code) =
CASE status
    WHEN 'pending'::text THEN 2
    ELSE 0
END)),
    CONSTRAINT task_lease CHECK (((lease IS NULL) OR (attempt > 0))),
    CONSTRAINT task_losts CHECK (((losts >= 0) AND (losts <= attempt))),
    CONSTRAINT task_status CHECK ((status = ANY (ARRAY['pending'::text, 'success'::text, 'error'::text]))),
    CONSTRAINT task_times CHECK (((time_limit_seconds >= (timeout_seconds)::double precision) AND (timeout_seconds > 0))),
    CONSTRAINT task_unknowns CHECK (((unknowns >= 0) AND (unknowns <= attempt))),
    CONSTRAINT task_waiting_is_untried CHECK (((status <> 'pending'::text) OR active OR (attempt = 0)))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');


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

CREATE INDEX task_deadline ON public.task USING btree (deadline_at) WHERE ((status = 'pending'::text) AND ((active AND (due_at IS NULL)) IS FALSE));


--
-- Name: task_dispatched; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_dispatched ON public.task USING btree (dispatched_at) WHERE (active AND (due_at IS NULL) AND (begun_at IS NULL));


--
-- Name: task_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_due ON public.task USING btree (due_at) WHERE (due_at IS NOT NULL);


--
-- Name: task_overdue; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_overdue ON public.task USING btree (overdue_at) WHERE (begun_at IS NOT NULL);


--
-- Name: task_waiting; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX task_waiting ON public.task USING btree (equipment_id, seq) WHERE ((status = 'pending'::text) AND (NOT active));


--
-- PostgreSQL database dump complete
--

\unrestrict dbmate


--
-- Dbmate schema migrations
--

INSERT INTO public.schema_migrations (version) VALUES
    ('20261123000000'),
    ('20261125110000'),
    ('20261125120000');
