-- The loss on held-out text by step, of each run.
-- :metric = eval_loss.validation   which loss
-- :sweep = NULL                    only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, m.step, m.value
FROM v_metrics m JOIN v_runs v USING (run_id)
WHERE m.key = :metric AND (:sweep IS NULL OR v.sweep = :sweep)
ORDER BY v.sweep, v.position, v.run_id, m.step
