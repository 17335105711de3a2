-- Room for what comes: waits, commands with request ids, failures by group, redrives, open batches, retention, fair
-- shares of tenants, limits over all workers. It adds, and takes nothing away: the index of claims is replaced by one
-- that also orders by partition and priority.
--
-- A batch that uses none of it has the defaults, which take no room in a row.

ALTER TABLE {s}.batch ADD COLUMN needs smallint NOT NULL DEFAULT 0;
ALTER TABLE {s}.batch ADD COLUMN next_due bigint;
ALTER TABLE {s}.batch ADD COLUMN priority smallint NOT NULL DEFAULT 0;
ALTER TABLE {s}.batch ADD COLUMN partition text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE {s}.batch ADD COLUMN purged smallint NOT NULL DEFAULT 0;
ALTER TABLE {s}.batch ADD COLUMN ended_at bigint;
UPDATE {s}.batch SET ended_at = substring(convert_from(core, 'UTF8') from '"ended_at":([0-9]+)')::bigint
    WHERE state IN ('completed', 'failed', 'cancelled');
-- No execution that was due before is due before this, as with from_due and from_key.
ALTER TABLE {s}.batch ADD COLUMN woken_due bigint NOT NULL DEFAULT 0;
ALTER TABLE {s}.batch ADD COLUMN woken_key bigint NOT NULL DEFAULT 0;

-- Nothing of these is pending: they sleep until something is due.
UPDATE {s}.batch b SET free = 0, next_due = (
    SELECT min(e.due) FROM {s}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL
) WHERE free > 0 AND pending = 0;

DROP INDEX {s}.batch_free;
CREATE INDEX batch_claim ON {s}.batch (partition, priority DESC, served, key) WHERE free > 0;
CREATE INDEX batch_next_due ON {s}.batch (workflow, version, next_due, key) WHERE next_due IS NOT NULL;
CREATE INDEX batch_ended ON {s}.batch (purged, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX batch_unsealed ON {s}.batch (created_at) WHERE loader IS NOT NULL;

ALTER TABLE {s}.execution ADD COLUMN expires bigint;
ALTER TABLE {s}.execution ADD COLUMN taken_from text COLLATE "C";
ALTER TABLE {s}.execution ADD COLUMN forget_from integer;
ALTER TABLE {s}.execution ADD COLUMN fingerprint text COLLATE "C";
CREATE INDEX execution_isolated ON {s}.execution (batch, due, key) WHERE due IS NOT NULL AND crashes >= 2;
CREATE INDEX execution_fingerprint ON {s}.execution (batch, fingerprint) WHERE fingerprint IS NOT NULL;

-- Of checkpoints that were recorded before, the stage is unknown.
ALTER TABLE {s}.activity ADD COLUMN stage smallint;
ALTER TABLE {s}.activity ADD COLUMN spent text COLLATE "C";

-- Every worker's row is that of a worker whose lease has expired: the library does not get here otherwise. Should its
-- process go on after all, no commit of it gets through (no number follows that of its last one), and without a
-- generation it cannot be registered again. What it owned is released like that of every worker that has died.
UPDATE {s}.worker SET commits = -2;
ALTER TABLE {s}.worker ADD COLUMN note text COLLATE "C";
ALTER TABLE {s}.worker ADD COLUMN before text COLLATE "C";
ALTER TABLE {s}.worker ADD COLUMN generation smallint NOT NULL DEFAULT 0;
ALTER TABLE {s}.worker ALTER COLUMN generation DROP DEFAULT;

-- What executions wait for, and what was sent to them before they asked.
CREATE TABLE {s}.wait (
    execution bigint NOT NULL,
    topic text COLLATE "C" NOT NULL,
    ordinal bigint NOT NULL,
    -- The checkpoint that it becomes; NULL: a message that nobody has asked for.
    key text COLLATE "C",
    due bigint,
    payload bytea,
    -- The provider's job that carries it.
    job bigint,
    PRIMARY KEY (execution, topic, ordinal)
);
CREATE INDEX wait_open ON {s}.wait (topic, execution) WHERE key IS NOT NULL AND job IS NULL;

-- The commands that were carried out, so that one that is repeated is answered as before.
CREATE TABLE {s}.request (
    batch bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    answer text COLLATE "C" NOT NULL,
    PRIMARY KEY (batch, id)
);
CREATE INDEX request_at ON {s}.request (at);

-- A run's failed documents, by group.
CREATE TABLE {s}.failure (
    batch bigint NOT NULL,
    run integer NOT NULL,
    fingerprint text COLLATE "C" NOT NULL,
    error_type text COLLATE "C" NOT NULL,
    activity text COLLATE "C",
    stage text COLLATE "C",
    message text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    first_position bigint NOT NULL,
    first_at bigint NOT NULL,
    last_at bigint NOT NULL,
    examples bytea NOT NULL,
    PRIMARY KEY (batch, run, fingerprint)
);

-- What providers were asked to answer together, later.
CREATE TABLE {s}.job (
    batch bigint NOT NULL,
    number bigint NOT NULL,
    provider text COLLATE "C" NOT NULL,
    external text COLLATE "C",
    state text COLLATE "C" NOT NULL,
    requests bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed bigint NOT NULL,
    updated_at bigint NOT NULL,
    PRIMARY KEY (batch, number)
);

-- Limits that all workers share, and what each of them holds; it goes with the worker's row.
CREATE TABLE {s}.shared_limit (
    name text COLLATE "C" NOT NULL PRIMARY KEY,
    data bytea NOT NULL,
    updated_at bigint NOT NULL
);
CREATE TABLE {s}.shared_slot (
    name text COLLATE "C" NOT NULL,
    worker text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    until bigint,
    data bytea,
    PRIMARY KEY (name, worker)
);
CREATE INDEX shared_slot_worker ON {s}.shared_slot (worker);
