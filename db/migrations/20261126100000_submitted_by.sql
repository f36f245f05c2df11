-- squawk-ignore-file require-concurrent-index-creation, require-concurrent-index-deletion
-- What is read and blocked here is the table of what is not finished, which is small.

-- migrate:up
SET LOCAL lock_timeout = '10s';

-- The name of the token that a task was submitted with; null where it came without one.
ALTER TABLE task ADD COLUMN submitted_by text COLLATE "C";
ALTER TABLE finished ADD COLUMN submitted_by text COLLATE "C";
-- How many tasks a token has, and which of them are due. It costs nothing where there are no tokens.
CREATE INDEX task_submitted_by ON task (submitted_by, due_at) WHERE submitted_by IS NOT NULL;

-- migrate:down
SET LOCAL lock_timeout = '10s';

DROP INDEX task_submitted_by;
ALTER TABLE finished DROP COLUMN submitted_by;
ALTER TABLE task DROP COLUMN submitted_by;
