-- The runs that ran out of memory: what they asked for and what was free, in GiB.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, json_extract(r.config, '$.train.sequence_length') AS sequence_length,
       round(r.asked_bytes / 1073741824.0, 2) AS asked_gib, round(r.free_bytes / 1073741824.0, 2) AS free_gib,
       round(r.peak_allocated / 1073741824.0, 2) AS peak_gib, r.device_name, r.status_detail
FROM (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v JOIN runs r USING (run_id)
WHERE r.status = 'out_of_memory'
ORDER BY v.sweep, v.position
