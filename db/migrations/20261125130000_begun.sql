-- migrate:up
SET LOCAL lock_timeout = '10s';

-- Advanced for each call that may begin. So the relays see how fast the queue is emptied, by whomever.
CREATE SEQUENCE task_begun;
-- It tells nothing and guards nothing: whoever may use the table need not be granted this, too.
GRANT USAGE, SELECT ON SEQUENCE task_begun TO PUBLIC;

-- migrate:down
DROP SEQUENCE task_begun;
