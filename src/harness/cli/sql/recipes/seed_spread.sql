-- How far the seeds of a label lie apart: mean, standard deviation (n - 1) and range of the last loss. No mean where one of them
-- is no number.
-- :sweep = NULL   only this sweep
SELECT sweep, label, count(*) AS seeds, CASE WHEN count(last_loss) = count(*) THEN avg(last_loss) END AS mean_loss,
       CASE WHEN count(*) > 1 AND count(last_loss) = count(*) THEN
         sqrt(max(0, sum(last_loss * last_loss) - count(*) * avg(last_loss) * avg(last_loss)) / (count(*) - 1))
       END AS standard_deviation,
       min(last_loss) AS least, max(last_loss) AS most
FROM v_runs
WHERE status = 'finished' AND sweep IS NOT NULL AND (:sweep IS NULL OR sweep = :sweep)
GROUP BY sweep, label
ORDER BY sweep, mean_loss IS NULL, mean_loss
