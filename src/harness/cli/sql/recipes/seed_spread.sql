-- How far the seeds of a label lie apart: mean, standard deviation (n - 1) and range of the last loss.
-- :sweep = NULL   only this sweep
SELECT sweep, label, count(*) AS seeds, avg(last_loss) AS mean_loss,
       CASE WHEN count(*) > 1 THEN
         sqrt(max(0, sum(last_loss * last_loss) - count(*) * avg(last_loss) * avg(last_loss)) / (count(*) - 1))
       END AS standard_deviation,
       min(last_loss) AS least, max(last_loss) AS most
FROM v_runs
WHERE status = 'finished' AND sweep IS NOT NULL AND last_loss IS NOT NULL AND (:sweep IS NULL OR sweep = :sweep)
GROUP BY sweep, label
ORDER BY sweep, mean_loss
