-- The learning rate that each run really had: at its first step, its highest, at its last.
-- :sweep = learning_rate   the sweep
SELECT v.run_id, v.label, v.seed,
       (SELECT value FROM v_metrics f WHERE f.run_id = v.run_id AND f.key = 'learning_rate' ORDER BY step LIMIT 1) AS first,
       (SELECT max(value) FROM v_metrics f WHERE f.run_id = v.run_id AND f.key = 'learning_rate') AS highest,
       (SELECT value FROM v_last_metrics f WHERE f.run_id = v.run_id AND f.key = 'learning_rate') AS last
FROM v_runs v
WHERE v.sweep = :sweep AND v.step > 0
ORDER BY v.position
