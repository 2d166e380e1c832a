-- The loss of each run when it had seen so many tokens, lowest first.
-- A run of several sweeps is there once, under the first by name.
-- :tokens = 500000   the budget
-- :sweep = NULL      only the points of this sweep
WITH at AS (
  SELECT run, min(step) AS step FROM metrics
  WHERE key = (SELECT id FROM metric_keys WHERE key = 'tokens') AND value >= :tokens GROUP BY run
)
SELECT v.run_id, v.sweep, v.label, v.seed, at.step, m.value AS loss
FROM at
JOIN metrics m ON m.run = at.run AND m.step = at.step AND m.key = (SELECT id FROM metric_keys WHERE key = 'loss')
JOIN runs r ON r.id = at.run JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
WHERE m.value IS NOT NULL
ORDER BY loss, v.run_id
