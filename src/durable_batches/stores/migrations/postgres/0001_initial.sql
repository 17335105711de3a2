-- The first schema. Expand-only from here: a later migration adds, and never takes away.
--
-- The name of the schema stands before each table. An execution's key is its batch's key and its position in one
-- integer (batch << 32 | position + 1), so that a batch's rows lie together in submission order and need no second
-- index for it. Texts that are sorted or compared are in the order of their code points, whatever the database's
-- locale.
--
-- Rows that change often have room to change in place (fillfactor) and are vacuumed early.

CREATE TABLE {s}.batch (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id text COLLATE "C" NOT NULL UNIQUE,
    workflow text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    loader text COLLATE "C",
    run integer NOT NULL,
    state text COLLATE "C" NOT NULL,
    paused boolean NOT NULL,
    total bigint NOT NULL,
    pending bigint NOT NULL,
    running bigint NOT NULL,
    waiting bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    seq bigint NOT NULL,
    free bigint NOT NULL,
    wake bigint,
    served bigint NOT NULL,
    core bytea NOT NULL,
    metadata text NOT NULL,
    created_at bigint NOT NULL,
    -- A digest of each of the metadata's labels, to find batches by them.
    labels text[] NOT NULL,
    -- No execution of the batch is due before this (due, key): a claim begins to look here, and not at the
    -- remains of the executions that were claimed before, which the index keeps until it is vacuumed.
    from_due bigint NOT NULL DEFAULT 0,
    from_key bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX batch_free ON {s}.batch (served, key) WHERE free > 0;
CREATE INDEX batch_wake ON {s}.batch (wake) WHERE wake IS NOT NULL;
CREATE INDEX batch_workflow ON {s}.batch (workflow, key);
CREATE INDEX batch_labels ON {s}.batch USING gin (labels);

-- What changes as a document runs; small, since each change writes the whole row.
CREATE TABLE {s}.execution (
    key bigint PRIMARY KEY,
    batch bigint NOT NULL,
    document_id text COLLATE "C" NOT NULL,
    run integer NOT NULL,
    status text COLLATE "C" NOT NULL,
    mark integer NOT NULL,
    attempt integer NOT NULL,
    failures integer NOT NULL,
    crashes integer NOT NULL,
    alone boolean NOT NULL,
    owner text COLLATE "C",
    due bigint,
    updated_at bigint NOT NULL,
    claimed_by_commit bigint,
    UNIQUE (batch, document_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX execution_due ON {s}.execution (batch, due, key) WHERE due IS NOT NULL;
CREATE INDEX execution_owner ON {s}.execution (owner) WHERE owner IS NOT NULL;

-- What does not change, and may be large.
CREATE TABLE {s}.document (
    key bigint PRIMARY KEY,
    input bytea NOT NULL
);
CREATE TABLE {s}.outcome (
    key bigint PRIMARY KEY,
    payload bytea NOT NULL
);

-- The checkpoints.
CREATE TABLE {s}.activity (
    execution bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    failed boolean NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (execution, key)
);

CREATE TABLE {s}.event (
    batch bigint NOT NULL,
    seq bigint NOT NULL,
    at bigint NOT NULL,
    tag text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (batch, seq)
);

CREATE TABLE {s}.signal (
    execution bigint NOT NULL,
    ordinal bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (execution, ordinal)
);

-- A worker that has left has no row, and so no commit of it gets through. One that was declared dead has none
-- either, once all that it held is free; until then its row says that it is dead.
CREATE TABLE {s}.worker (
    worker_id text COLLATE "C" PRIMARY KEY,
    boot_id text NOT NULL,
    pid_namespace text NOT NULL,
    pid bigint NOT NULL,
    started text NOT NULL,
    workflows text NOT NULL,
    lease bigint NOT NULL,
    lease_until bigint NOT NULL,
    commits bigint NOT NULL,
    refused text NOT NULL,
    dead text COLLATE "C"
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
