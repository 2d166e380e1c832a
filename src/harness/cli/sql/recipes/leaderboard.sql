-- The runs by the last value of any metric, lowest first.
-- :metric = eval_loss.validation   a key of metric_keys
-- :sweep = NULL                    only the points of this sweep
-- :limit = 10                      how many
SELECT r.run_id, r.sweep, r.label, r.seed, m.step, m.value
FROM v_last_metrics m JOIN v_runs r USING (run_id)
WHERE m.key = :metric AND m.value IS NOT NULL AND (:sweep IS NULL OR r.sweep = :sweep)
ORDER BY m.value, r.run_id
LIMIT :limit
