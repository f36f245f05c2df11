-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
-- Nobody writes into `finished` until all are made: outcomes wait meanwhile, and nothing else does. So this is a
-- migration, and a transaction, of its own; see the CHANGELOG for how long it takes.

-- migrate:up
SET LOCAL lock_timeout = '10s';

-- What lists are read along, newest first.
CREATE INDEX finished_equipment_id_id ON finished (equipment_id, id);
CREATE INDEX finished_external_id_id ON finished (external_id, id) WHERE external_id IS NOT NULL;
CREATE INDEX finished_submitted_by_id ON finished (submitted_by, id) WHERE submitted_by IS NOT NULL;
CREATE INDEX finished_failures ON finished (id) WHERE status = 'error';

-- migrate:down
SET LOCAL lock_timeout = '10s';

DROP INDEX finished_equipment_id_id, finished_external_id_id, finished_submitted_by_id, finished_failures;
