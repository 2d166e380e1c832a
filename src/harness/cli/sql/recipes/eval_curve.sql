-- The loss on held-out text by step, of each run.
-- A run of several sweeps is there once, under the first by name.
-- :metric = eval_loss.validation   which loss
-- :sweep = NULL                    only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, m.step, m.value
FROM v_metrics m JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
WHERE m.key = :metric
ORDER BY v.sweep, v.position, v.run_id, m.step
