-- The longest sequence that trained, and the shortest that did not, on each device.
-- :sweep = NULL   only the points of this sweep
SELECT v.sweep, v.device_name,
       max(CASE WHEN v.status = 'finished' THEN n.number END) AS longest_that_trained,
       min(CASE WHEN v.status = 'out_of_memory' THEN n.number END) AS shortest_out_of_memory,
       round(max(CASE WHEN v.status = 'finished' THEN v.peak_allocated END) / 1073741824.0, 2) AS peak_gib
FROM v_runs v JOIN v_params n ON n.run_id = v.run_id AND n.key = 'train.sequence_length'
WHERE v.device_name IS NOT NULL AND (:sweep IS NULL OR v.sweep = :sweep)
GROUP BY v.sweep, v.device_name
ORDER BY v.sweep, v.device_name
