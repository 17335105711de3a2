-- Room for what comes: waits, commands with request ids, failures by group, redrives, open batches, retention, fair
-- shares of tenants, limits over all workers. It adds, and takes nothing away: the index of claims is replaced by one
-- that also orders by partition and priority.
--
-- A batch that uses none of it has the defaults, which take no room in a row.

ALTER TABLE batch ADD COLUMN needs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN next_due INTEGER;
ALTER TABLE batch ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN partition TEXT NOT NULL DEFAULT '';
ALTER TABLE batch ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN ended_at INTEGER;
UPDATE batch SET ended_at = json_extract(CAST(core AS TEXT), '$.ended_at');

-- Nothing of these is pending: they sleep until something is due.
UPDATE batch SET free = 0, next_due = (
    SELECT MIN(due) FROM execution WHERE execution.batch = batch.key AND due IS NOT NULL
) WHERE free > 0 AND pending = 0;

DROP INDEX batch_free;
CREATE INDEX batch_claim ON batch (partition, priority DESC, served, key) WHERE free > 0;
CREATE INDEX batch_next_due ON batch (workflow, version, next_due) WHERE next_due IS NOT NULL;
CREATE INDEX batch_ended ON batch (purged, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX batch_unsealed ON batch (created_at) WHERE loader IS NOT NULL;

ALTER TABLE execution ADD COLUMN expires INTEGER;
ALTER TABLE execution ADD COLUMN taken_from TEXT;
ALTER TABLE execution ADD COLUMN forget_from INTEGER;
ALTER TABLE execution ADD COLUMN fingerprint TEXT;
CREATE INDEX execution_isolated ON execution (batch, due) WHERE due IS NOT NULL AND crashes >= 2;
CREATE INDEX execution_fingerprint ON execution (batch, fingerprint) WHERE fingerprint IS NOT NULL;

-- Of checkpoints that were recorded before, the stage is unknown.
ALTER TABLE activity ADD COLUMN stage INTEGER;
ALTER TABLE activity ADD COLUMN spent TEXT;

-- Every worker's row is that of a worker whose lease has expired: the library does not get here otherwise. Should its
-- process go on after all, no commit of it gets through (no number follows that of its last one), and without a
-- generation it cannot be registered again. What it owned is released like that of every worker that has died.
CREATE TABLE worker_of_0002 (
    worker_id TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    workflows TEXT NOT NULL,
    lease INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    commits INTEGER NOT NULL,
    refused TEXT NOT NULL,
    note TEXT,
    before TEXT,
    generation INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO worker_of_0002
    SELECT worker_id, boot_id, pid_namespace, pid, started, workflows, lease, lease_until, -2, refused, NULL, NULL, 0
    FROM worker;
DROP TABLE worker;
ALTER TABLE worker_of_0002 RENAME TO worker;

-- What executions wait for, and what was sent to them before they asked.
CREATE TABLE wait (
    execution INTEGER NOT NULL,
    topic TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    -- The checkpoint that it becomes; NULL: a message that nobody has asked for.
    key TEXT,
    due INTEGER,
    payload BLOB,
    -- The provider's job that carries it.
    job INTEGER,
    PRIMARY KEY (execution, topic, ordinal)
);
CREATE INDEX wait_open ON wait (topic, execution) WHERE key IS NOT NULL AND job IS NULL;

-- The commands that were carried out, so that one that is repeated is answered as before.
CREATE TABLE request (
    batch INTEGER NOT NULL,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (batch, id)
) WITHOUT ROWID;
CREATE INDEX request_at ON request (at);

-- A run's failed documents, by group.
CREATE TABLE failure (
    batch INTEGER NOT NULL,
    run INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    error_type TEXT NOT NULL,
    activity TEXT,
    stage TEXT,
    message TEXT NOT NULL,
    count INTEGER NOT NULL,
    first_position INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    examples BLOB NOT NULL,
    PRIMARY KEY (batch, run, fingerprint)
) WITHOUT ROWID;

-- What providers were asked to answer together, later.
CREATE TABLE job (
    batch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    provider TEXT NOT NULL,
    external TEXT,
    state TEXT NOT NULL,
    requests INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;

-- Limits that all workers share, and what each of them holds; it goes with the worker's row.
CREATE TABLE shared_limit (
    name TEXT NOT NULL PRIMARY KEY,
    data BLOB NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE shared_slot (
    name TEXT NOT NULL,
    worker TEXT NOT NULL,
    amount INTEGER NOT NULL,
    until INTEGER,
    data BLOB,
    PRIMARY KEY (name, worker)
) WITHOUT ROWID;
CREATE INDEX shared_slot_worker ON shared_slot (worker);
