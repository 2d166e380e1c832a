-- Every setting of one run.
-- :run = NULL    how the run's id begins; without it, the run that began last
-- :key = %       only keys like this (% stands for anything)
SELECT run_id, key, value
FROM v_params
WHERE key LIKE :key AND run_id = CASE WHEN :run IS NULL
    THEN (SELECT run_id FROM runs ORDER BY coalesce(started_at, created_at) DESC, run_id LIMIT 1)
    ELSE (SELECT run_id FROM runs WHERE run_id LIKE :run || '%' ORDER BY run_id LIMIT 1) END
ORDER BY key
