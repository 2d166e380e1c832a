-- Peak memory by sequence length, in GiB, with how the runs ended.
-- :sweep = NULL   only the points of this sweep
SELECT v.sweep, n.number AS sequence_length, count(*) AS runs, sum(v.status = 'finished') AS finished,
       round(max(v.peak_allocated) / 1073741824.0, 3) AS peak_allocated_gib,
       round(max(v.peak_reserved) / 1073741824.0, 3) AS peak_reserved_gib
FROM v_runs v JOIN v_params n ON n.run_id = v.run_id AND n.key = 'train.sequence_length'
WHERE v.peak_allocated IS NOT NULL AND (:sweep IS NULL OR v.sweep = :sweep)
GROUP BY v.sweep, n.number
ORDER BY v.sweep, n.number
