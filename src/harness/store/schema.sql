-- The store of fathom: an index of the runs' event logs, and a public interface for SQL.
--
-- Runs can be rebuilt from results/runs/*/{config.yaml,identity.json,events.jsonl,verdicts.json,labels.json}, sweeps from
-- results/sweeps/*.json. One process writes, any number read. Times are seconds since 1970-01-01 UTC, losses are nats per token, memory is bytes, JSON is text.
-- Views (at the end) are for people and are kept stable; tables may gain columns. The comment above each table or view is
-- what `fathom sql` lists.

-- A sweep, as it was last planned. Beside the file's keys `spec` may have `command_line` (what was laid over the file) and
-- `earlier_runs` (runs of points that the sweep has no more).
CREATE TABLE sweeps (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    file        TEXT NOT NULL,               -- the sweep file, as it was named
    question    TEXT,                        -- the comment that opens the file
    spec        TEXT NOT NULL,               -- the sweep file as JSON: axes, search, eval, report
    planned_at  REAL NOT NULL
) STRICT;

-- The points of a sweep in their order. A run belongs to every sweep that has a point with its hash.
CREATE TABLE points (
    sweep_id    INTEGER NOT NULL REFERENCES sweeps (id) ON DELETE CASCADE,
    position    INTEGER NOT NULL,            -- 0, 1, ... in the order of the plan
    label       TEXT NOT NULL,               -- what tells the point from the others, seed left out: 'rope=yarn2'
    seed        INTEGER NOT NULL,
    settings    TEXT NOT NULL,               -- JSON object: axis -> label or value, seed included
    run_id      TEXT NOT NULL,               -- runs.run_id; the run may not exist yet
    PRIMARY KEY (sweep_id, position)
) STRICT, WITHOUT ROWID;

-- One row a run. Columns from `attempt` on are those of the last attempt.
CREATE TABLE runs (
    id                INTEGER PRIMARY KEY,
    run_id            TEXT NOT NULL UNIQUE,  -- first 12 hexadecimal digits of run_hash; the name of the run's folder
    run_hash          TEXT NOT NULL,
    group_hash        TEXT NOT NULL,         -- the same for all seeds of a point
    folder            TEXT NOT NULL,         -- relative to the results folder: 'runs/<run_id>'
    config            TEXT NOT NULL,         -- the complete configuration as JSON
    digests           TEXT NOT NULL,         -- JSON: blake3 of model, tokenizer and data
    seed              INTEGER NOT NULL,
    created_at        REAL NOT NULL,
    -- planned, running, finished, stopped, out_of_memory, diverged, failed; killed (by a signal), lost (no ending, no process)
    status            TEXT NOT NULL,
    status_detail     TEXT,                  -- the error, the signal, what was asked of memory and what was free
    attempt           INTEGER NOT NULL DEFAULT 0,
    started_at        REAL,
    ended_at          REAL,
    seconds           REAL NOT NULL DEFAULT 0, -- over all attempts
    earlier_seconds   REAL NOT NULL DEFAULT 0, -- of these, those before the last attempt
    step              INTEGER NOT NULL DEFAULT 0,
    tokens            INTEGER NOT NULL DEFAULT 0,
    last_loss         REAL,
    peak_allocated    INTEGER,               -- the highest of any step or phase of any attempt
    peak_reserved     INTEGER,
    code_version      TEXT,
    git_commit        TEXT,
    git_dirty         INTEGER,
    host              TEXT,
    device            TEXT,
    device_name       TEXT,
    driver            TEXT,
    libtorch          TEXT,
    threads           INTEGER,
    environment       TEXT,                  -- JSON object
    asked_bytes       INTEGER,               -- out_of_memory: what was asked for
    free_bytes        INTEGER,               --                what was free
    log_offset        INTEGER NOT NULL DEFAULT 0,  -- bytes of events.jsonl that are in here
    last_seq          INTEGER NOT NULL DEFAULT -1  -- the last event that is in here
) STRICT;
CREATE INDEX runs_by_group ON runs (group_hash);

-- The complete configuration, flattened by key path.
CREATE TABLE params (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,               -- 'train.optimizer.type'
    value       TEXT NOT NULL,               -- JSON
    number      REAL,                        -- the value, where it is a number
    PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;

-- The names of scalars.
CREATE TABLE metric_keys (
    id          INTEGER PRIMARY KEY,
    key         TEXT NOT NULL UNIQUE         -- 'loss', 'learning_rate', 'grad_norm', 'eval_loss.validation', ...
) STRICT;

-- Scalars by step. A resumed run rewrites the steps it does again: the last attempt's value stands.
CREATE TABLE metrics (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    key         INTEGER NOT NULL REFERENCES metric_keys (id),
    step        INTEGER NOT NULL,
    value       REAL,                        -- NULL is NaN; infinities are kept
    PRIMARY KEY (run, key, step)
) STRICT, WITHOUT ROWID;

-- Perplexity by context length; nll_low and nll_high bound the 95 % bootstrap interval over windows.
CREATE TABLE perplexity (
    run             INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step            INTEGER NOT NULL,
    split           TEXT NOT NULL,
    method          TEXT NOT NULL,           -- 'prefix' or 'last_stride'
    context_length  INTEGER NOT NULL,
    windows         INTEGER NOT NULL,
    tokens          INTEGER NOT NULL,        -- predictions that count
    nll             REAL,
    perplexity      REAL,
    nll_low         REAL,
    nll_high        REAL,
    window_nll      TEXT NOT NULL,           -- JSON list: the mean of each window, for paired comparisons
    PRIMARY KEY (run, step, split, method, context_length)
) STRICT, WITHOUT ROWID;

-- Mean NLL of the predictions that see start..end tokens.
CREATE TABLE position_nll (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step        INTEGER NOT NULL,
    split       TEXT NOT NULL,
    start       INTEGER NOT NULL,
    "end"       INTEGER NOT NULL,
    tokens      INTEGER NOT NULL,
    nll         REAL,
    PRIMARY KEY (run, step, split, start)
) STRICT, WITHOUT ROWID;

-- Device memory at the end of each phase; resident memory on the CPU.
CREATE TABLE memory (
    run             INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step            INTEGER NOT NULL,
    phase           TEXT NOT NULL,
    allocated       INTEGER NOT NULL,
    reserved        INTEGER NOT NULL,
    peak_allocated  INTEGER NOT NULL,
    peak_reserved   INTEGER NOT NULL,
    PRIMARY KEY (run, step, phase)
) STRICT, WITHOUT ROWID;

-- Text that the model wrote.
CREATE TABLE samples (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    prompt      TEXT NOT NULL,
    text        TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

-- What the leaves of the code met: realized block lengths, the RoPE in use, the attention kernel, ...
CREATE TABLE facts (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    value       TEXT NOT NULL,               -- JSON
    PRIMARY KEY (run, name)
) STRICT, WITHOUT ROWID;

-- Files that a run wrote.
CREATE TABLE artifacts (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    kind        TEXT NOT NULL,               -- 'checkpoint'
    step        INTEGER NOT NULL,
    path        TEXT NOT NULL,               -- relative to the run's folder
    bytes       INTEGER NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

-- Events that are not numbers: attempts, warnings, control, endings. `body` is the event as it was logged.
CREATE TABLE events_meta (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    time        REAL NOT NULL,
    kind        TEXT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;

-- One row a run for each sweep it is a point of (sweep and label are NULL for a run of none), with what people ask first.
CREATE VIEW v_runs AS
SELECT s.name AS sweep, p.position, p.label, r.run_id, r.seed, r.status, r.status_detail, r.step, r.tokens, r.seconds,
       r.last_loss, exp(r.last_loss) AS last_perplexity,
       r.peak_allocated, r.peak_reserved, r.device, r.device_name, r.started_at, r.ended_at, r.folder
FROM runs r
LEFT JOIN points p ON p.run_id = r.run_id
LEFT JOIN sweeps s ON s.id = p.sweep_id;

-- Every scalar by name.
CREATE VIEW v_metrics AS
SELECT r.run_id, k.key, m.step, m.value
FROM metrics m JOIN runs r ON r.id = m.run JOIN metric_keys k ON k.id = m.key;

-- The last value of every scalar of every run.
CREATE VIEW v_last_metrics AS
SELECT r.run_id, k.key, m.step, m.value
FROM runs r JOIN metric_keys k
JOIN metrics m ON m.run = r.id AND m.key = k.id
  AND m.step = (SELECT max(step) FROM metrics WHERE run = r.id AND key = k.id);

-- Final perplexity by context length, of each point of each sweep.
CREATE VIEW v_perplexity AS
SELECT s.name AS sweep, p.label, p.seed, r.run_id, r.status, x.split, x.method, x.context_length, x.windows, x.tokens,
       x.nll, x.perplexity, x.nll_low, x.nll_high
FROM perplexity x
JOIN runs r ON r.id = x.run
JOIN points p ON p.run_id = r.run_id
JOIN sweeps s ON s.id = p.sweep_id
WHERE x.step = (SELECT max(step) FROM perplexity WHERE run = x.run);

-- The sweep's comparison table: one row a label, means over seeds of finished runs.
CREATE VIEW v_comparison AS
SELECT sweep, label, split, method, context_length, count(*) AS seeds, avg(nll) AS mean_nll, exp(avg(nll)) AS perplexity,
       min(perplexity) AS best_perplexity, max(perplexity) AS worst_perplexity
FROM v_perplexity WHERE status = 'finished' GROUP BY sweep, label, split, method, context_length;

-- Every parameter of every run by key path.
CREATE VIEW v_params AS
SELECT r.run_id, x.key, x.value, x.number FROM params x JOIN runs r ON r.id = x.run;
