-- migrate:up
SET LOCAL lock_timeout = '10s';

-- Internal time is now() + correction. It goes on as if nothing had happened when the database's clock is set.
CREATE TABLE task_clock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    correction interval NOT NULL DEFAULT '0'
);
INSERT INTO task_clock DEFAULT VALUES;

-- Which process does the maintenance, and until when (in internal time) it need not say so again.
CREATE TABLE maintenance (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder uuid,
    until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO maintenance DEFAULT VALUES;

-- migrate:down
DROP TABLE maintenance;
DROP TABLE task_clock;
