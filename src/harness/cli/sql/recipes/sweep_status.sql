-- How the points of each sweep stand.
SELECT s.name AS sweep, count(*) AS points,
       count(CASE WHEN r.status = 'finished' THEN 1 END) AS finished,
       count(CASE WHEN r.status IN ('out_of_memory', 'diverged') THEN 1 END) AS other_results,
       count(CASE WHEN r.status IN ('failed', 'killed', 'lost', 'stopped') THEN 1 END) AS without_result,
       count(CASE WHEN r.status = 'running' THEN 1 END) AS running,
       sum(r.status IS NULL OR r.status = 'planned') AS to_do
FROM sweeps s JOIN points p ON p.sweep_id = s.id LEFT JOIN runs r ON r.run_id = p.run_id
GROUP BY s.id ORDER BY s.name
