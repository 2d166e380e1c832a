-- The Pareto front of last loss against peak memory: the finished runs that no other beats in both.
-- :sweep = learning_rate   the sweep
WITH done AS (
  SELECT DISTINCT run_id, label, seed, last_loss, peak_allocated FROM v_runs
  WHERE sweep = :sweep AND status = 'finished' AND last_loss IS NOT NULL AND peak_allocated IS NOT NULL
)
SELECT run_id, label, seed, last_loss, round(peak_allocated / 1073741824.0, 3) AS peak_gib
FROM done a
WHERE NOT EXISTS (
  SELECT 1 FROM done b
  WHERE b.last_loss <= a.last_loss AND b.peak_allocated <= a.peak_allocated
    AND (b.last_loss < a.last_loss OR b.peak_allocated < a.peak_allocated)
)
ORDER BY last_loss, run_id
