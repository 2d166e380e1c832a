-- The runs that ran out of memory: what they asked for and what was free, in GiB.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, json_extract(r.config, '$.train.sequence_length') AS sequence_length,
       round(r.asked_bytes / 1073741824.0, 2) AS asked_gib, round(r.free_bytes / 1073741824.0, 2) AS free_gib,
       round(r.peak_allocated / 1073741824.0, 2) AS peak_gib, r.device_name, r.status_detail
FROM v_runs v JOIN runs r USING (run_id)
WHERE r.status = 'out_of_memory' AND (:sweep IS NULL OR v.sweep = :sweep)
ORDER BY v.sweep, v.position
