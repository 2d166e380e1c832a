-- How many tokens each run needed until its loss was first at or below a value, fewest first.
-- A run of several sweeps is there once, under the first by name.
-- :loss = 3.0    nats per token
-- :sweep = NULL  only the points of this sweep
WITH reached AS (
  SELECT run, min(step) AS step FROM metrics
  WHERE key = (SELECT id FROM metric_keys WHERE key = 'loss') AND value <= :loss GROUP BY run
)
SELECT v.run_id, v.sweep, v.label, v.seed, reached.step, CAST(m.value AS INTEGER) AS tokens
FROM reached
JOIN metrics m ON m.run = reached.run AND m.step = reached.step
  AND m.key = (SELECT id FROM metric_keys WHERE key = 'tokens')
JOIN runs r ON r.id = reached.run JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
ORDER BY tokens, v.run_id
