-- The mean and the highest gradient norm of each run, and the step of the highest.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, x.mean, x.highest, x.step AS at_step
FROM (
  -- SQLite takes `step` from the row that has the maximum.
  SELECT run_id, step, avg(value) AS mean, max(value) AS highest FROM v_metrics WHERE key = 'grad_norm' GROUP BY run_id
) x JOIN v_runs v USING (run_id)
WHERE :sweep IS NULL OR v.sweep = :sweep
ORDER BY x.highest DESC, v.run_id
