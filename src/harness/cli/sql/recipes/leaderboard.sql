-- The runs by the last value of any metric, lowest first.
-- A run of several sweeps is there once, under the first by name.
-- :metric = eval_loss.validation   a key of metric_keys
-- :sweep = NULL                    only the points of this sweep
-- :limit = 10                      how many
SELECT r.run_id, r.sweep, r.label, r.seed, m.step, m.value
FROM v_last_metrics m JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) r USING (run_id)
WHERE m.key = :metric AND m.value IS NOT NULL
ORDER BY m.value, r.run_id
LIMIT :limit
