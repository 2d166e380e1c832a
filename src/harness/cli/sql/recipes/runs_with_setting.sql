-- The runs that have a setting, and what it is.
-- A run of several sweeps is there once, under the first by name.
-- :key = train.learning_rate   the setting's key path
-- :value = NULL                only this value, as JSON writes it
SELECT r.run_id, r.sweep, r.label, r.seed, r.status, p.value, r.last_loss
FROM v_params p JOIN (SELECT *, min(sweep) FROM v_runs GROUP BY run_id) r USING (run_id)
WHERE p.key = :key AND (:value IS NULL OR p.value = :value)
ORDER BY p.number, p.value, r.run_id
