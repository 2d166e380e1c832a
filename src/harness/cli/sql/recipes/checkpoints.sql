-- The checkpoints that each run wrote, with their size; some may have been removed since.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, a.step, round(a.bytes / 1073741824.0, 3) AS gib, v.folder || '/' || a.path AS path
FROM artifacts a JOIN runs r ON r.id = a.run JOIN (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v USING (run_id)
WHERE a.kind = 'checkpoint'
ORDER BY v.sweep, v.position, v.run_id, a.step
