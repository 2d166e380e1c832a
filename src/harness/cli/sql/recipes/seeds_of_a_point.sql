-- The runs that differ by their seed alone, with how many of them have finished.
-- :sweep = NULL   only the points of this sweep
SELECT r.group_hash, min(v.label) AS label, count(DISTINCT r.run_id) AS runs, group_concat(DISTINCT r.seed) AS seeds,
       count(DISTINCT CASE WHEN r.status = 'finished' THEN r.run_id END) AS finished
FROM runs r JOIN v_runs v USING (run_id)
WHERE :sweep IS NULL OR v.sweep = :sweep
GROUP BY r.group_hash
ORDER BY runs DESC, label
