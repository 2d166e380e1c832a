-- Version 2: summaries of scalars, and attempts as rows of their own. What a store of version 1 has is carried over.

-- Last, smallest and largest value of every scalar of every run, kept in the transaction that writes the scalar. NaN is no number and only counted; infinities are numbers.
CREATE TABLE metric_summaries (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    key         INTEGER NOT NULL REFERENCES metric_keys (id),
    last        REAL,                        -- NULL is NaN
    last_step   INTEGER NOT NULL,
    min         REAL,                        -- NULL where every value is NaN
    min_step    INTEGER,                     -- the first step that has it
    max         REAL,
    max_step    INTEGER,
    count       INTEGER NOT NULL,            -- steps that have a value, NaN included
    nan_count   INTEGER NOT NULL,
    PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;
-- For rankings: the best runs by a scalar without a look at the others.
CREATE INDEX metric_summaries_by_last ON metric_summaries (key, last);
CREATE INDEX metric_summaries_by_min ON metric_summaries (key, min);
CREATE INDEX metric_summaries_by_max ON metric_summaries (key, max);

INSERT INTO metric_summaries
SELECT g.run, g.key, l.value, g.last_step,
       g.min, (SELECT min(step) FROM metrics WHERE run = g.run AND key = g.key AND value = g.min),
       g.max, (SELECT min(step) FROM metrics WHERE run = g.run AND key = g.key AND value = g.max),
       g.count, g.nan_count
FROM (SELECT run, key, max(step) AS last_step, min(value) AS min, max(value) AS max, count(*) AS count,
             count(*) - count(value) AS nan_count
      FROM metrics GROUP BY run, key) g
JOIN metrics l ON l.run = g.run AND l.key = g.key AND l.step = g.last_step;

-- One row an attempt, never overwritten by a later one.
CREATE TABLE attempts (
    run                INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq                INTEGER NOT NULL,     -- of the event that began it
    attempt            INTEGER NOT NULL,     -- 1 for the first, as the worker counts
    resumed_from_step  INTEGER NOT NULL,     -- 0 for a fresh start
    started_at         REAL NOT NULL,
    ended_at           REAL,                 -- NULL while it runs, and where no ending was logged
    status             TEXT NOT NULL,        -- as in runs; lost where another attempt began and this one had no ending
    status_detail      TEXT,
    seconds            REAL NOT NULL,        -- from its beginning to its last event
    step               INTEGER,              -- how far it got; NULL where a store of version 1 did not say
    host               TEXT,
    pid                INTEGER,
    code_version       TEXT,
    git_commit         TEXT,
    git_dirty          INTEGER,
    device             TEXT,
    device_name        TEXT,
    driver             TEXT,
    libtorch           TEXT,
    threads            INTEGER,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

INSERT INTO attempts
SELECT s.run, s.seq, s.body ->> 'attempt', s.body ->> 'resumed_from_step', s.time, e.time,
       coalesce(e.kind, iif(s.next IS NULL, r.status, 'lost')),
       iif(s.next IS NULL, r.status_detail, coalesce(e.body ->> 'error', e.body ->> 'reason', e.body ->> 'message')),
       coalesce(iif(s.next IS NULL, r.seconds - r.earlier_seconds, e.body ->> 'elapsed_seconds'), 0.0),
       iif(s.next IS NULL, r.step, e.body ->> 'step'),
       s.body ->> 'host', s.body ->> 'pid', s.body ->> 'code_version', s.body ->> 'git_commit', s.body ->> 'git_dirty',
       s.body ->> 'device', s.body ->> 'device_name', s.body ->> 'driver', s.body ->> 'libtorch', s.body ->> 'threads'
FROM (SELECT run, seq, time, body, lead(seq) OVER (PARTITION BY run ORDER BY seq) AS next
      FROM events_meta WHERE kind = 'started') s
JOIN runs r ON r.id = s.run
LEFT JOIN events_meta e ON e.run = s.run AND e.seq = (
    SELECT max(seq) FROM events_meta
    WHERE run = s.run AND seq > s.seq AND (s.next IS NULL OR seq < s.next)
      AND kind IN ('finished', 'stopped', 'out_of_memory', 'diverged', 'failed'));

DROP VIEW v_last_metrics;

-- The last value of every scalar of every run.
CREATE VIEW v_last_metrics AS
SELECT r.run_id, k.key, s.last_step AS step, s.last AS value
FROM metric_summaries s JOIN runs r ON r.id = s.run JOIN metric_keys k ON k.id = s.key;

-- Last, smallest and largest value of every scalar of every run, with their steps; NaN is counted apart.
CREATE VIEW v_metric_summaries AS
SELECT r.run_id, k.key, s.last, s.last_step, s.min, s.min_step, s.max, s.max_step, s.count, s.nan_count
FROM metric_summaries s JOIN runs r ON r.id = s.run JOIN metric_keys k ON k.id = s.key;

-- Every attempt of every run, first to last: when, where, by which code, and how it ended.
CREATE VIEW v_attempts AS
SELECT r.run_id, a.attempt, a.resumed_from_step, a.started_at, a.ended_at, a.status, a.status_detail, a.seconds, a.step,
       a.host, a.pid, a.code_version, a.git_commit, a.git_dirty, a.device, a.device_name, a.driver, a.libtorch, a.threads
FROM attempts a JOIN runs r ON r.id = a.run;
