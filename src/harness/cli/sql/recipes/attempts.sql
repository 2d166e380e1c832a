-- The attempts of each run, those that needed most first.
-- :at_least = 1   only runs with so many
SELECT r.run_id, count(*) AS attempts, max(CAST(json_extract(e.body, '$.resumed_from_step') AS INTEGER)) AS resumed_from_step,
       r.status, round(r.seconds, 1) AS seconds
FROM events_meta e JOIN runs r ON r.id = e.run
WHERE e.kind = 'started'
GROUP BY r.id
HAVING count(*) >= :at_least
ORDER BY attempts DESC, r.run_id
