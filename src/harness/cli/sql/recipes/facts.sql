-- What the leaves of the code met under one name, and in how many runs.
-- :name = model.rope_parameters   the fact's name (its names: SELECT DISTINCT name FROM facts)
SELECT x.value, count(*) AS runs, min(r.run_id) AS one_of_them
FROM facts x JOIN runs r ON r.id = x.run
WHERE x.name = :name
GROUP BY x.value
ORDER BY runs DESC, x.value
