-- The loss on held-out text less that of training, at each run's end: the mean of its last training steps.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL                    only the points of this sweep
-- :metric = eval_loss.validation   the loss on held-out text
-- :steps = 10                      how many training steps the mean is of
SELECT v.run_id, v.sweep, v.label, v.seed, e.value AS held_out_loss, t.loss AS training_loss, e.value - t.loss AS gap
FROM v_last_metrics e JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
JOIN (
  SELECT m.run_id, CASE WHEN count(m.value) = count(*) THEN avg(m.value) END AS loss FROM v_metrics m JOIN runs r USING (run_id)
  WHERE m.key = 'loss' AND m.step > r.step - :steps GROUP BY m.run_id
) t USING (run_id)
WHERE e.key = :metric
ORDER BY gap IS NULL, gap, v.run_id
