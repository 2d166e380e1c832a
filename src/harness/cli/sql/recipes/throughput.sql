-- Tokens per second by label and device: the mean over steps, the first left out (it warms up).
-- :sweep = NULL   only the points of this sweep
SELECT r.sweep, r.label, r.device_name, count(DISTINCT r.run_id) AS runs, round(avg(m.value), 1) AS tokens_per_second,
       round(max(m.value), 1) AS fastest_step
FROM v_metrics m JOIN v_runs r USING (run_id)
WHERE m.key = 'tokens_per_second' AND m.step > 1 AND (:sweep IS NULL OR r.sweep = :sweep)
GROUP BY r.sweep, r.label, r.device_name
ORDER BY r.sweep, tokens_per_second DESC
