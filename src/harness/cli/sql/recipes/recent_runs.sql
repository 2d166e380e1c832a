-- The runs that began last.
-- :limit = 20   how many
SELECT run_id, sweep, label, seed, status, step, last_loss,
       strftime('%Y-%m-%d %H:%M:%S', started_at, 'unixepoch') AS started
FROM v_runs
WHERE started_at IS NOT NULL
ORDER BY started_at DESC, run_id
LIMIT :limit
