-- migrate:up
SET LOCAL lock_timeout = '10s';

-- The name of the token that a task was submitted with; null where it came without one.
ALTER TABLE task ADD COLUMN submitted_by text COLLATE "C";
ALTER TABLE finished ADD COLUMN submitted_by text COLLATE "C";

-- migrate:down
SET LOCAL lock_timeout = '10s';

ALTER TABLE finished DROP COLUMN submitted_by;
ALTER TABLE task DROP COLUMN submitted_by;
