-- What runs warned of, and in how many runs.
SELECT json_extract(e.body, '$.message') AS message, count(DISTINCT e.run) AS runs, min(r.run_id) AS one_of_them
FROM events_meta e JOIN runs r ON r.id = e.run
WHERE e.kind = 'warning'
GROUP BY message
ORDER BY runs DESC, message
