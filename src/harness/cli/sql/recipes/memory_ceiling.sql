-- The longest sequence that trained and the shortest that did not, in each case of a sweep on each device.
-- :sweep = NULL   only the points of this sweep
WITH tried AS (
  SELECT s.name AS sweep, json_remove(p.settings, '$."train.sequence_length"', '$."run.probe_layers"', '$."train.seed"') AS of,
         r.device_name, r.status, n.number AS tokens, r.peak_allocated
  FROM points p JOIN sweeps s ON s.id = p.sweep_id JOIN runs r ON r.run_id = p.run_id
  JOIN params n ON n.run = r.id AND n.key = 'train.sequence_length'
  WHERE r.device_name IS NOT NULL AND (:sweep IS NULL OR s.name = :sweep)
),
found AS (
  SELECT sweep, of, device_name, max(CASE WHEN status = 'finished' THEN tokens END) AS longest_that_trained,
         min(CASE WHEN status = 'out_of_memory' THEN tokens END) AS shortest_out_of_memory
  FROM tried GROUP BY sweep, of, device_name
)
SELECT f.sweep, f.of AS "case", f.device_name, f.longest_that_trained, f.shortest_out_of_memory,
       (SELECT round(max(t.peak_allocated) / 1073741824.0, 2) FROM tried t
        WHERE t.sweep = f.sweep AND t.of = f.of AND t.device_name = f.device_name AND t.status = 'finished'
          AND t.tokens = f.longest_that_trained) AS peak_gib
FROM found f
ORDER BY f.sweep, f.of, f.device_name
