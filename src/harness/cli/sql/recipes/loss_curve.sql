-- The curve of one metric of one run, averaged in groups of steps.
-- :run = NULL      how the run's id begins; without it, the finished run with the lowest last loss
-- :metric = loss   a key of metric_keys
-- :every = 10      steps in a group
SELECT run_id, max(step) AS up_to_step, count(*) AS steps, avg(value) AS mean, min(value) AS least, max(value) AS most
FROM v_metrics
WHERE key = :metric AND run_id = CASE WHEN :run IS NULL
    THEN (SELECT run_id FROM runs WHERE status = 'finished' AND last_loss IS NOT NULL ORDER BY last_loss, run_id LIMIT 1)
    ELSE (SELECT run_id FROM runs WHERE run_id LIKE :run || '%' ORDER BY run_id LIMIT 1) END
GROUP BY run_id, (step - 1) / :every
ORDER BY up_to_step
