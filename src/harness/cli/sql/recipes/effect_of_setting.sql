-- The last loss by the values of one setting: over all finished runs that have it.
-- :key = train.learning_rate   the setting's key path
-- :sweep = NULL                only the points of this sweep
SELECT p.value, count(*) AS runs, avg(r.last_loss) AS mean_loss, min(r.last_loss) AS least, max(r.last_loss) AS most
FROM v_params p JOIN v_runs r USING (run_id)
WHERE p.key = :key AND r.status = 'finished' AND (:sweep IS NULL OR r.sweep = :sweep)
GROUP BY p.value
ORDER BY mean_loss
