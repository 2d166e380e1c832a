-- Text that the models wrote, newest step first.
-- :run = NULL    how the run's id begins
-- :limit = 10    how many
SELECT r.run_id, x.step, x.prompt, x.text
FROM samples x JOIN runs r ON r.id = x.run
WHERE :run IS NULL OR r.run_id LIKE :run || '%'
ORDER BY x.step DESC, r.run_id, x.seq
LIMIT :limit
