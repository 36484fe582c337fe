CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- One row per sandbox; doc holds labels, power, deletion, history and status.
CREATE TABLE sandboxes (
    name       TEXT PRIMARY KEY,
    uid        TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,
    generation INTEGER NOT NULL,
    host_uid   INTEGER NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    spec       TEXT NOT NULL,
    doc        TEXT NOT NULL,
    rv         INTEGER NOT NULL
) STRICT;

-- Written before anything is spawned; a row becomes dead only with proof.
CREATE TABLE instances (
    iid   TEXT PRIMARY KEY,
    uid   TEXT NOT NULL,
    n     INTEGER NOT NULL,
    phase TEXT NOT NULL,
    doc   TEXT NOT NULL
) STRICT;

-- The database itself refuses a second live instance.
CREATE UNIQUE INDEX instances_one_live ON instances (uid) WHERE phase <> 'dead';
CREATE INDEX instances_newest ON instances (uid, n);

CREATE TABLE files (
    path TEXT PRIMARY KEY,
    doc  TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    id      INTEGER PRIMARY KEY,
    seq     INTEGER NOT NULL,
    time    INTEGER NOT NULL,
    name    TEXT,
    level   TEXT NOT NULL,
    reason  TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
