-- The checkpoints that each run wrote, with their size; some may have been removed since.
-- :sweep = NULL   only the points of this sweep
SELECT v.run_id, v.sweep, v.label, v.seed, a.step, round(a.bytes / 1073741824.0, 3) AS gib, v.folder || '/' || a.path AS path
FROM artifacts a JOIN runs r ON r.id = a.run JOIN v_runs v USING (run_id)
WHERE a.kind = 'checkpoint' AND (:sweep IS NULL OR v.sweep = :sweep)
ORDER BY v.sweep, v.position, v.run_id, a.step
