-- The mean and the highest gradient norm of each run, and the step of the highest.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, x.mean, x.highest, x.step AS at_step
FROM (
  -- SQLite takes `step` from the row that has the maximum.
  SELECT run_id, step, avg(value) AS mean, max(value) AS highest FROM v_metrics WHERE key = 'grad_norm' GROUP BY run_id
) x JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
ORDER BY x.highest DESC, v.run_id
