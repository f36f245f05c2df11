-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion, constraint-missing-not-valid
-- A partition's index is made while nobody writes into it: see the CHANGELOG for what that takes.

-- migrate:up
SET LOCAL lock_timeout = '10s';

ALTER TABLE task
    -- The client's own name for it, and what it is a retry of.
    ADD COLUMN external_id text COLLATE "C",
    ADD COLUMN retry_of uuid,
    -- What its parameters are sealed for, where that is another task: a retry hands them on as they are.
    ADD COLUMN sealed_for uuid,
    -- What the client asked for, in the plain clock's time.
    ADD COLUMN not_before timestamptz,
    -- When it takes its place in the line of its device, in internal time; null as soon as it has.
    ADD COLUMN start_at timestamptz,
    -- It came with many others: single ones go first.
    ADD COLUMN bulk boolean NOT NULL DEFAULT false,
    -- It is not tried again: its deadline is the moment when that was asked for.
    ADD COLUMN cancel_requested boolean NOT NULL DEFAULT false,
    -- What differs from the straight way: a list of events.
    ADD COLUMN history jsonb,
    ADD CONSTRAINT task_external_id CHECK (length(external_id) BETWEEN 1 AND 128),
    ADD CONSTRAINT task_start CHECK (start_at IS NULL OR NOT active);

ALTER TABLE finished
    ADD COLUMN external_id text COLLATE "C",
    ADD COLUMN retry_of uuid,
    ADD COLUMN sealed_for uuid,
    ADD COLUMN not_before timestamptz,
    ADD COLUMN deadline_at timestamptz,
    -- When its last call began.
    ADD COLUMN begun_at timestamptz,
    -- What ended it, if that was no outcome.
    ADD COLUMN ended_by text,
    ADD COLUMN cancel_requested boolean NOT NULL DEFAULT false,
    ADD COLUMN history jsonb,
    -- Not valid: there is nothing to be found in the rows that are there, and looking would hold up who asks for them.
    ADD CONSTRAINT finished_ended_by CHECK (ended_by IS NULL OR ended_by IN ('cancel', 'deadline') AND code = 500) NOT VALID;

DROP INDEX task_waiting;
CREATE INDEX task_waiting ON task (equipment_id, seq) WHERE NOT active AND start_at IS NULL;
CREATE INDEX task_start ON task (start_at) WHERE start_at IS NOT NULL;
CREATE INDEX task_scheduled ON task (equipment_id) WHERE NOT active AND start_at IS NOT NULL;
CREATE INDEX task_external_id_id ON task (external_id, id) WHERE external_id IS NOT NULL;
-- What came singly is claimed first; so each kind is looked up by itself.
DROP INDEX task_due, task_submitted_by;
CREATE INDEX task_due ON task (bulk, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX task_submitted_by ON task (bulk, submitted_by, due_at) WHERE submitted_by IS NOT NULL;

-- A client's key, and the task that its request became: the same request makes no other one.
CREATE TABLE idempotency_key (
    -- The name of the token; empty without one.
    submitted_by text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    task_id uuid NOT NULL,
    -- HMAC-SHA256 of the request.
    digest bytea NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (submitted_by, key)
);
CREATE UNIQUE INDEX idempotency_key_task ON idempotency_key (task_id);
-- What the digests are made with, where the services are told nothing else.
CREATE TABLE idempotency_secret (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    secret bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);
INSERT INTO idempotency_secret DEFAULT VALUES;

-- migrate:down
SET LOCAL lock_timeout = '10s';

DROP TABLE idempotency_secret;
DROP TABLE idempotency_key;

-- What has not taken its place yet takes it now.
DROP INDEX task_start, task_scheduled, task_external_id_id, task_waiting, task_due, task_submitted_by;
CREATE INDEX task_due ON task (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX task_submitted_by ON task (submitted_by, due_at) WHERE submitted_by IS NOT NULL;
CREATE INDEX task_waiting ON task (equipment_id, seq) WHERE NOT active;
ALTER TABLE finished
    DROP COLUMN external_id, DROP COLUMN retry_of, DROP COLUMN sealed_for, DROP COLUMN not_before,
    DROP COLUMN deadline_at, DROP COLUMN begun_at, DROP COLUMN ended_by, DROP COLUMN cancel_requested,
    DROP COLUMN history;
ALTER TABLE task
    DROP COLUMN external_id, DROP COLUMN retry_of, DROP COLUMN sealed_for, DROP COLUMN not_before,
    DROP COLUMN start_at, DROP COLUMN bulk, DROP COLUMN cancel_requested, DROP COLUMN history;
