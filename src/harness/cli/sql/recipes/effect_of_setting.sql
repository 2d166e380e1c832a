-- The last loss by the values of one setting: over all finished runs that have it, each once. No mean where one of them is
-- no number.
-- :key = train.learning_rate   the setting's key path
-- :sweep = NULL                only the points of this sweep
SELECT p.value, count(*) AS runs, CASE WHEN count(r.last_loss) = count(*) THEN avg(r.last_loss) END AS mean_loss,
       min(r.last_loss) AS least, max(r.last_loss) AS most
FROM v_params p JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) r USING (run_id)
WHERE p.key = :key AND r.status = 'finished'
GROUP BY p.value
ORDER BY mean_loss IS NULL, mean_loss
