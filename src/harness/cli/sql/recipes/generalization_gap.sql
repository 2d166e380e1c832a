-- The loss on held-out text less that of training, at each run's end: the mean of its last training steps.
-- :sweep = NULL                    only the points of this sweep
-- :metric = eval_loss.validation   the loss on held-out text
-- :steps = 10                      how many training steps the mean is of
SELECT v.run_id, v.sweep, v.label, v.seed, e.value AS held_out_loss, t.loss AS training_loss, e.value - t.loss AS gap
FROM v_last_metrics e JOIN v_runs v USING (run_id)
JOIN (
  SELECT m.run_id, avg(m.value) AS loss FROM v_metrics m JOIN runs r USING (run_id)
  WHERE m.key = 'loss' AND m.step > r.step - :steps GROUP BY m.run_id
) t USING (run_id)
WHERE e.key = :metric AND (:sweep IS NULL OR v.sweep = :sweep)
ORDER BY gap, v.run_id
