-- The runs that took longest, with the time that a step took.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
-- :limit = 10     how many
SELECT run_id, sweep, label, seed, status, round(seconds, 1) AS seconds, step,
       round(seconds / nullif(step, 0), 3) AS seconds_per_step, device_name
FROM (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v
ORDER BY v.seconds DESC, run_id
LIMIT :limit
