-- Version 4: verdicts as rows of their own, and an index of the runs that are not finished. Verdicts are kept in verdicts.json of
-- each run's folder and sweeps in sweeps/ beside the runs, from which all of it can be rebuilt.

-- What a supervisor found of attempts that did not say themselves how they ended, in the order in which it was found.
CREATE TABLE verdicts (
    run            INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    number         INTEGER NOT NULL,         -- 0 for the first of a run
    after_seq      INTEGER NOT NULL,         -- the last event of the log then; -1 where there was none
    status         TEXT NOT NULL,            -- killed, lost, failed, out_of_memory
    status_detail  TEXT,
    PRIMARY KEY (run, number)
) STRICT, WITHOUT ROWID;

-- Attempts without an ending of their own, and runs of which something else was said than of their last attempt.
INSERT INTO verdicts
SELECT run, row_number() OVER (PARTITION BY run ORDER BY after_seq) - 1, after_seq, status, status_detail
FROM (SELECT a.run, coalesce(lead(a.seq) OVER (PARTITION BY a.run ORDER BY a.seq) - 1, r.last_seq) AS after_seq,
             a.status, a.status_detail, a.ended_at,
             a.status = 'lost' AND a.status_detail IS NULL
               AND lead(a.seq) OVER (PARTITION BY a.run ORDER BY a.seq) IS NOT NULL AS by_the_next
      FROM attempts a JOIN runs r ON r.id = a.run)
WHERE ended_at IS NULL AND status != 'running' AND NOT by_the_next;
INSERT INTO verdicts
SELECT r.id, (SELECT count(*) FROM verdicts WHERE run = r.id), r.last_seq, r.status, r.status_detail
FROM runs r LEFT JOIN attempts a ON a.run = r.id AND a.seq = (SELECT max(seq) FROM attempts WHERE run = r.id)
WHERE r.status NOT IN ('planned', 'running') AND (r.status, r.status_detail) IS NOT (a.status, a.status_detail);

-- Every verdict on every run.
CREATE VIEW v_verdicts AS
SELECT r.run_id, v.number, v.after_seq, v.status, v.status_detail FROM verdicts v JOIN runs r ON r.id = v.run;

-- So that whoever reads finds at once what may have changed since it was written.
CREATE INDEX runs_not_finished ON runs (run_id, status, log_offset) WHERE status != 'finished';
