-- The first schema. Expand-only from here: a later migration adds, and never takes away.
--
-- An execution's key is its batch's key and its position in one integer (batch << 32 | position + 1), so that a
-- batch's rows lie together in submission order and need no second index for it.

CREATE TABLE batch (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    batch_id TEXT NOT NULL UNIQUE,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    loader TEXT,
    run INTEGER NOT NULL,
    state TEXT NOT NULL,
    paused INTEGER NOT NULL,
    total INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    running INTEGER NOT NULL,
    waiting INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    free INTEGER NOT NULL,
    wake INTEGER,
    served INTEGER NOT NULL,
    core BLOB NOT NULL,
    metadata TEXT NOT NULL,
    created_at INTEGER NOT NULL
);
CREATE INDEX batch_free ON batch (served, key) WHERE free > 0;
CREATE INDEX batch_wake ON batch (wake) WHERE wake IS NOT NULL;
CREATE INDEX batch_workflow ON batch (workflow, key);

-- What changes as a document runs; small, since each change writes the whole row.
CREATE TABLE execution (
    key INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL,
    document_id TEXT NOT NULL,
    run INTEGER NOT NULL,
    status TEXT NOT NULL,
    mark INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    alone INTEGER NOT NULL,
    owner TEXT,
    due INTEGER,
    updated_at INTEGER NOT NULL,
    claimed_by_commit INTEGER,
    UNIQUE (batch, document_id)
);
CREATE INDEX execution_due ON execution (batch, due) WHERE due IS NOT NULL;
CREATE INDEX execution_owner ON execution (owner) WHERE owner IS NOT NULL;

-- What does not change, and may be large.
CREATE TABLE document (
    key INTEGER PRIMARY KEY,
    input BLOB NOT NULL
);
CREATE TABLE outcome (
    key INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
);

-- The checkpoints. A table in order of arrival with an index beside it fills its pages; one clustered by
-- execution would split them, since the rows of many executions arrive interleaved.
CREATE TABLE activity (
    execution INTEGER NOT NULL,
    key TEXT NOT NULL,
    failed INTEGER NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (execution, key)
);

CREATE TABLE event (
    batch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    tag TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (batch, seq)
) WITHOUT ROWID;

CREATE TABLE signal (
    execution INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    name TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (execution, ordinal)
) WITHOUT ROWID;

-- The living ones: a worker that was declared dead, or has left, has no row, and so no commit of it gets through.
CREATE TABLE worker (
    worker_id TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    workflows TEXT NOT NULL,
    lease INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    commits INTEGER NOT NULL,
    refused TEXT NOT NULL
) WITHOUT ROWID;
