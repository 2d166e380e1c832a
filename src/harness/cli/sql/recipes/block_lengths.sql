-- The lengths of the blocks that were trained on beside the length that was asked for.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, n.number AS sequence_length, json_extract(f.value, '$.blocks') AS blocks,
       json_extract(f.value, '$.min') AS shortest, json_extract(f.value, '$.median') AS median,
       json_extract(f.value, '$.max') AS longest, json_extract(f.value, '$.share_full') AS share_full
FROM facts f JOIN runs r ON r.id = f.run JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
JOIN v_params n ON n.run_id = r.run_id AND n.key = 'train.sequence_length'
WHERE f.name = 'train.sequence_length'
ORDER BY share_full, v.run_id
