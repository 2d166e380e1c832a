-- The points that have no result yet: never begun, stopped, failed, killed or lost.
-- :sweep = NULL   only this sweep
SELECT s.name AS sweep, p.position, p.label, p.seed, p.run_id, coalesce(r.status, 'never begun') AS status, r.status_detail
FROM sweeps s JOIN points p ON p.sweep_id = s.id LEFT JOIN runs r ON r.run_id = p.run_id
WHERE coalesce(r.status, '') NOT IN ('finished', 'out_of_memory', 'diverged') AND (:sweep IS NULL OR s.name = :sweep)
ORDER BY s.name, p.position
