-- In which phase memory peaks: the highest of each phase, in GiB, of one run.
-- :run = NULL   how the run's id begins; without it, the run that took most
SELECT r.run_id, x.phase, round(max(x.peak_allocated) / 1073741824.0, 3) AS peak_allocated_gib,
       round(max(x.peak_reserved) / 1073741824.0, 3) AS peak_reserved_gib, max(x.step) AS last_step
FROM memory x JOIN runs r ON r.id = x.run
WHERE CASE WHEN :run IS NULL
        THEN r.id = (SELECT run FROM memory ORDER BY peak_allocated DESC, run LIMIT 1)
        ELSE r.run_id LIKE :run || '%' END
GROUP BY r.run_id, x.phase
ORDER BY r.run_id, max(x.peak_allocated) DESC, x.phase
