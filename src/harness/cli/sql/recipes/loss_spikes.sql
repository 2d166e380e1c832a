-- Steps whose loss is far above the mean of the steps before it.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
-- :times = 1.3    how many times that mean
-- :before = 20    how many steps the mean is of
-- :limit = 50     how many
SELECT v.run_id, v.sweep, v.label, v.seed, x.step, x.loss, x.mean_before, x.loss / x.mean_before AS times
FROM (
  SELECT run_id, step, value AS loss, row_number() OVER before AS steps,
         avg(value) OVER (PARTITION BY run_id ORDER BY step ROWS BETWEEN :before PRECEDING AND 1 PRECEDING) AS mean_before
  FROM v_metrics WHERE key = 'loss' WINDOW before AS (PARTITION BY run_id ORDER BY step)
) x JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
WHERE x.steps > :before AND x.loss > :times * x.mean_before
ORDER BY times DESC, v.run_id, x.step
LIMIT :limit
