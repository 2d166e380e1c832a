-- The settings that are not the same in all runs of a sweep, with how many values each has.
-- :sweep = rope_variants   the sweep
SELECT key, count(DISTINCT value) AS number_of_values, min(value) AS one, max(value) AS another
FROM v_params
WHERE run_id IN (SELECT run_id FROM v_runs WHERE sweep = :sweep)
GROUP BY key
HAVING count(DISTINCT value) > 1
ORDER BY key
