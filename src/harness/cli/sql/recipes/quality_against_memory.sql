-- The Pareto front of last loss (held out where there is one) against peak memory: the finished runs that no other beats in both.
-- :sweep = learning_rate   the sweep
WITH done AS (
  SELECT DISTINCT v.run_id, v.label, v.seed, coalesce(e.value, v.last_loss) AS loss, v.peak_allocated
  FROM v_runs v LEFT JOIN v_last_metrics e ON e.run_id = v.run_id AND e.key = 'eval_loss.validation'
  WHERE v.sweep = :sweep AND v.status = 'finished' AND coalesce(e.value, v.last_loss) IS NOT NULL
    AND v.peak_allocated IS NOT NULL
)
SELECT run_id, label, seed, loss, round(peak_allocated / 1073741824.0, 3) AS peak_gib
FROM done a
WHERE NOT EXISTS (
  SELECT 1 FROM done b
  WHERE b.loss <= a.loss AND b.peak_allocated <= a.peak_allocated
    AND (b.loss < a.loss OR b.peak_allocated < a.peak_allocated)
)
ORDER BY loss, run_id
